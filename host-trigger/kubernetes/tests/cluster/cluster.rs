//! A cluster without nodes: an API server with the manifests, the controller and node agents with
//! their own rights. What a scheduler and kubelets would do is a method here.

use std::sync::Arc;

use block_volume_kubernetes::{
    attachment_pod,
    controller::{self, Settings},
    metrics::Metrics,
    node::{self, Host},
    resource::{BlockVolumeAttachment, Condition, ConditionType, Truth},
};
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolumeClaim, Pod};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    api_server::{ApiServer, User},
    wait::until,
};

pub(crate) const NAMESPACE: &str = "db";

/// A task that ends with this value.
#[derive(Debug)]
pub(crate) struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) client: Client,
}

impl Cluster {
    /// A cluster with the manifests and a namespace for users.
    pub(crate) async fn start() -> Self {
        // Shown if the test fails.
        let _ = tracing_subscriber::fmt()
            .with_test_writer()
            .with_env_filter("block_volume_kubernetes=debug,kube_runtime=warn")
            .try_init();
        let server = ApiServer::start().await;
        // This API server does not know rules in CEL: it leaves them out, and kubectl lets them be.
        server.kubectl(&["apply", "--validate=false", "--kustomize=manifests/base"]);
        let definition = "customresourcedefinitions/blockvolumeattachments.\
                          block-volume.ecr-runtime.dev";
        server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", definition]);
        let client = server.client(User::Admin);
        let this = Self { server, client };
        let namespace: Namespace = object(json!({ "metadata": { "name": NAMESPACE } }));
        Api::all(this.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        this
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// The controller, with its rights.
    pub(crate) fn controller(&self) -> Running {
        let settings = Settings { image: "image".to_owned() };
        let client = self.server.client(User::Controller);
        let run = controller::run(client, settings, Arc::default(), std::future::pending());
        Running(tokio::spawn(run))
    }

    /// The agent of a node, with its rights.
    pub(crate) fn node_agent(&self, node: &'static str, host: impl Host) -> Running {
        let client = self.server.client(User::Node);
        let metrics = Arc::<Metrics>::default();
        let run = async move {
            node::run(client, node, host, metrics, std::future::pending()).await;
        };
        Running(tokio::spawn(run))
    }

    pub(crate) async fn create<K>(&self, value: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let new: K = object(value);
        self.api().create(&PostParams::default(), &new).await.unwrap()
    }

    pub(crate) async fn create_node(&self, name: &str) {
        let node: Node = object(json!({ "metadata": { "name": name } }));
        Api::all(self.client.clone()).create(&PostParams::default(), &node).await.unwrap();
    }

    pub(crate) async fn delete_node(&self, name: &str) {
        Api::<Node>::all(self.client.clone()).delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// A pod that runs on `node`, with a container `app` of this ID.
    pub(crate) async fn run_pod(&self, name: &str, node: &str, container: &str) -> Pod {
        let made: Pod = self
            .create(json!({
                "metadata": { "name": name },
                "spec": {
                    "nodeName": node,
                    "runtimeClassName": null,
                    "containers": [{ "name": "app", "image": "image" }],
                },
            }))
            .await;
        self.container_runs(name, container).await;
        made
    }

    /// kubelet reports that the container `app` of a pod runs.
    pub(crate) async fn container_runs(&self, pod: &str, container: &str) {
        self.set_pod_status(
            pod,
            json!({
                "phase": "Running",
                "containerStatuses": [{
                    "name": "app", "containerID": format!("containerd://{container}"),
                    "ready": true, "image": "image", "imageID": "image", "restartCount": 0,
                    "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } },
                }],
            }),
        )
        .await;
    }

    pub(crate) async fn set_pod_status(&self, pod: &str, status: Value) {
        let body = json!({ "status": status });
        let patch = Patch::Merge(&body);
        self.api::<Pod>().patch_status(pod, &PatchParams::default(), &patch).await.unwrap();
    }

    /// A pod that is gone at once, as after kubelet has ended it.
    pub(crate) async fn delete_pod(&self, name: &str) {
        let at_once = DeleteParams::default().grace_period(0);
        self.api::<Pod>().delete(name, &at_once).await.unwrap();
    }

    /// A claim of a block volume, which is bound.
    pub(crate) async fn claim(&self, name: &str, size: &str) {
        let _: PersistentVolumeClaim = self
            .create(json!({
                "metadata": { "name": name },
                "spec": {
                    "volumeMode": "Block",
                    "accessModes": ["ReadWriteOnce"],
                    "resources": { "requests": { "storage": size } },
                },
            }))
            .await;
        self.claim_has(name, size).await;
    }

    /// The claim has this capacity.
    pub(crate) async fn claim_has(&self, name: &str, size: &str) {
        let body = json!({ "status": { "phase": "Bound", "capacity": { "storage": size } } });
        let patch = Patch::Merge(&body);
        let claims = self.api::<PersistentVolumeClaim>();
        claims.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// An attachment of the claim of the same name at /dev/xvda in the container `app`.
    pub(crate) async fn attach(&self, name: &str, pod: &str) -> BlockVolumeAttachment {
        self.create(attachment(name, pod)).await
    }

    pub(crate) async fn attachment(&self, name: &str) -> Option<BlockVolumeAttachment> {
        self.api().get_opt(name).await.unwrap()
    }

    pub(crate) async fn delete(&self, name: &str) {
        let attachments = self.api::<BlockVolumeAttachment>();
        attachments.delete(name, &DeleteParams::default()).await.unwrap();
    }

    pub(crate) async fn patch(&self, name: &str, body: Value) {
        let patch = Patch::Merge(&body);
        let attachments = self.api::<BlockVolumeAttachment>();
        attachments.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until the controller has made the attachment pod, and has it run.
    pub(crate) async fn run_attachment_pod(&self, attachment: &BlockVolumeAttachment) {
        let pod = self.attachment_pod(attachment).await;
        self.set_pod_status(&pod.name_any(), json!({ "phase": "Running" })).await;
    }

    /// Waits until the controller has made the attachment pod.
    pub(crate) async fn attachment_pod(&self, attachment: &BlockVolumeAttachment) -> Pod {
        let name = attachment_pod::name(attachment);
        let pods = self.api::<Pod>();
        until(&format!("attachment pod {name} is made"), || async {
            pods.get_opt(&name).await.unwrap().is_some()
        })
        .await;
        pods.get(&name).await.unwrap()
    }

    /// Waits until a condition is so.
    pub(crate) async fn until_condition(
        &self,
        name: &str,
        condition_type: ConditionType,
        status: Truth,
        reason: &str,
    ) -> BlockVolumeAttachment {
        let is_it =
            |condition: &Condition| condition.status == status && condition.reason == reason;
        self.until(name, &format!("{condition_type:?} is {status:?}: {reason}"), |one| {
            one.condition(condition_type).is_some_and(is_it)
        })
        .await
    }

    /// Waits until an attachment is so.
    pub(crate) async fn until(
        &self,
        name: &str,
        awaited: &str,
        is_so: impl Fn(&BlockVolumeAttachment) -> bool,
    ) -> BlockVolumeAttachment {
        let began = std::time::Instant::now();
        loop {
            let now = self.attachment(name).await;
            if let Some(now) = &now
                && is_so(now)
            {
                return now.clone();
            }
            let status = now.map(|now| now.status);
            assert!(began.elapsed() < crate::wait::LIMIT, "not in time: {awaited}; {status:#?}");
            tokio::time::sleep(crate::wait::INTERVAL).await;
        }
    }

    /// Waits until an attachment is gone.
    pub(crate) async fn until_gone(&self, name: &str) {
        let began = std::time::Instant::now();
        while let Some(there) = self.attachment(name).await {
            let (metadata, status) = (there.metadata, there.status);
            let late = began.elapsed() > crate::wait::LIMIT;
            assert!(!late, "{name} is not gone in time: {metadata:#?} {status:#?}");
            tokio::time::sleep(crate::wait::INTERVAL).await;
        }
    }
}

pub(crate) fn attachment(name: &str, pod: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": {
            "podName": pod,
            "containerName": "app",
            "source": { "persistentVolumeClaim": { "claimName": name } },
            "devicePath": "/dev/xvda",
        },
    })
}

pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}
