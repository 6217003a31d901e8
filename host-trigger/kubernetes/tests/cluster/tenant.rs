//! A namespace with what its users create there. What a scheduler and kubelets would do to it is a
//! method here.

use block_volume_kubernetes::{
    attachment_pod,
    resource::{BlockVolumeAttachment, Condition, ConditionType, Truth},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{Namespace, PersistentVolumeClaim, Pod},
        storage::v1::StorageClass,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::wait::{self, until};

#[derive(Clone)]
pub(crate) struct Tenant {
    /// The administrator's.
    pub(crate) client: Client,
    namespace: String,
}

impl Tenant {
    /// A new namespace.
    pub(crate) async fn create_namespace(client: &Client, namespace: &str) -> Self {
        let new: Namespace = object(json!({ "metadata": { "name": namespace } }));
        Api::all(client.clone()).create(&PostParams::default(), &new).await.unwrap();
        Self { client: client.clone(), namespace: namespace.to_owned() }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) async fn create<K>(&self, value: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let new: K = object(value);
        self.api().create(&PostParams::default(), &new).await.unwrap()
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

    /// The scheduler gives the pod to a node: it is gone only when kubelet has ended it.
    pub(crate) async fn schedule(&self, pod: &str, node: &str) {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": pod },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let (pods, parameters) = (self.api::<Pod>(), PostParams::default());
        let bound = pods.create_subresource::<_, Value>("binding", pod, &parameters, &binding);
        bound.await.unwrap();
    }

    /// A claim of a block volume for one node, which is bound.
    pub(crate) async fn claim(&self, name: &str, size: &str) {
        self.claim_with(name, size, "ReadWriteOnce").await;
    }

    /// A claim of this access mode.
    pub(crate) async fn claim_with(&self, name: &str, size: &str, access_mode: &str) {
        self.claim_of(name, size, access_mode, "").await;
    }

    /// A class of storage whose claims can be expanded.
    pub(crate) async fn storage_class(&self, name: &str) {
        let class: StorageClass = object(json!({
            "metadata": { "name": name },
            "provisioner": "example.com",
            "allowVolumeExpansion": true,
        }));
        Api::all(self.client.clone()).create(&PostParams::default(), &class).await.unwrap();
    }

    /// A claim of this access mode and class of storage.
    pub(crate) async fn claim_of(&self, name: &str, size: &str, access_mode: &str, class: &str) {
        let _: PersistentVolumeClaim = self
            .create(json!({
                "metadata": { "name": name },
                "spec": {
                    "volumeMode": "Block",
                    "accessModes": [access_mode],
                    "storageClassName": class,
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
            assert!(began.elapsed() < wait::LIMIT, "not in time: {awaited}; {status:#?}");
            tokio::time::sleep(wait::INTERVAL).await;
        }
    }

    /// Waits until an attachment is gone.
    pub(crate) async fn until_gone(&self, name: &str) {
        let began = std::time::Instant::now();
        while let Some(there) = self.attachment(name).await {
            let (metadata, status) = (there.metadata, there.status);
            let late = began.elapsed() > wait::LIMIT;
            assert!(!late, "{name} is not gone in time: {metadata:#?} {status:#?}");
            tokio::time::sleep(wait::INTERVAL).await;
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

/// An attachment of a path of the node, at a device path of its own.
pub(crate) fn host_path_attachment(name: &str, pod: &str) -> Value {
    let mut one = attachment(name, pod);
    one["spec"]["source"] = json!({ "hostPath": { "path": format!("/dev/vg/{name}") } });
    one["spec"]["devicePath"] = format!("/dev/{name}").into();
    one
}

pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}
