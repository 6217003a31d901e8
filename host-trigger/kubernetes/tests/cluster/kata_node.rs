//! A node with a pod of Kata's: the pod is a real containerd's, its VM is the harness's, and
//! volumes are in kubelet's directory as kubelet would put them there.

use std::{fs, os::unix::fs::symlink, time::Duration};

use block_volume_kubernetes::{
    node::{AllowedPath, SandboxHost},
    resource::BlockVolumeAttachment,
};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use vm_harness::{
    Container, Containerd, Environment, Machine, PodContainer, PodOptions, Sandbox, Volume,
};

use crate::{
    cluster::{Cluster, NAMESPACE, Running},
    tenant::attachment,
    wait::until,
};

/// The name of the node.
pub(crate) const NODE: &str = "node-1";

pub(crate) struct KataNode {
    pub(crate) cluster: Cluster,
    pub(crate) containerd: Containerd,
    pub(crate) pod: vm_harness::Pod,
    pub(crate) app: PodContainer,
    pub(crate) sandbox: Sandbox,
    pub(crate) container: Container,
    pub(crate) host: SandboxHost,
    /// The rules that `host` has, as they are written.
    #[cfg_attr(not(feature = "fault"), expect(dead_code, reason = "for an agent as a process"))]
    pub(crate) allowed: Vec<String>,
    /// kubelet's directory.
    pub(crate) kubelet: tempfile::TempDir,
    pub(crate) agent: Option<Running>,
    _controller: Running,
}

impl KataNode {
    /// The pod `db-0`, on a node whose agent runs. `allowed` are the rules of its paths.
    pub(crate) async fn new(allowed: &[&str]) -> Self {
        let mut this = Self::without_agent(allowed).await;
        this.start_agent();
        this
    }

    /// The same on a node without an agent.
    pub(crate) async fn without_agent(allowed: &[&str]) -> Self {
        let environment = Environment::from_variables();
        Self::with("db-0", &environment, &Machine::default(), allowed).await
    }

    /// The pod `name`, whose VM is this `machine` in `environment`, on a node without an agent.
    pub(crate) async fn with(
        name: &str,
        environment: &Environment,
        machine: &Machine,
        allowed: &[&str],
    ) -> Self {
        let cluster = Cluster::start().await;
        cluster.create_node(NODE).await;
        let containerd = Containerd::start(environment, "bookworm").await.unwrap();
        let (pod, app) = run_pod(&cluster, &containerd, name, NODE).await;
        let sandbox = Sandbox::boot_as_in(environment, pod.id(), machine).await.unwrap();
        let container = sandbox.start_container_as(app.id()).await;
        let kubelet = tempfile::tempdir().unwrap();
        let host = SandboxHost {
            cri: Some(containerd.socket().into()),
            run_dir: Some(sandbox.run_dir().to_owned()),
            kubelet: kubelet.path().to_owned(),
            mount_namespace: Some("/proc/self/ns/mnt".into()),
            allowed: allowed.iter().map(|rule| rule.parse::<AllowedPath>().unwrap()).collect(),
            timeout: Duration::from_secs(120),
            audit_log: None,
        };
        let controller = cluster.controller();
        Self {
            cluster,
            containerd,
            pod,
            app,
            sandbox,
            container,
            host,
            allowed: allowed.iter().copied().map(str::to_owned).collect(),
            kubelet,
            agent: None,
            _controller: controller,
        }
    }

    pub(crate) fn start_agent(&mut self) {
        self.agent = Some(self.cluster.node_agent(NODE, self.host.clone()));
    }

    /// Creates an attachment of a claim, and does what kubelet does for its attachment pod.
    pub(crate) async fn attach(&self, name: &str, volume: &Volume) -> BlockVolumeAttachment {
        self.cluster.claim(name, "16Mi").await;
        let made = self.cluster.attach(name, "db-0").await;
        self.publish(&made, volume).await;
        made
    }

    /// kubelet and the container engine run the attachment pod: `volume` is on the node.
    pub(crate) async fn publish(&self, attachment: &BlockVolumeAttachment, volume: &Volume) {
        let pod = self.cluster.attachment_pod(attachment).await;
        let uid = pod.uid().unwrap();
        let options =
            PodOptions { uid: uid.clone(), ..PodOptions::named(NAMESPACE, &pod.name_any()) };
        self.containerd.run_pod(&options).await.unwrap();
        let plugin = format!("pods/{uid}/volumeDevices/kubernetes.io~csi");
        let plugin = self.kubelet.path().join(plugin);
        fs::create_dir_all(&plugin).unwrap();
        symlink(volume.path(), plugin.join("pvc-1")).unwrap();
        self.cluster.run_attachment_pod(attachment).await;
    }

    /// What `ecr-runtime block-volume list` has of the sandbox.
    pub(crate) async fn listed(&self) -> Vec<Value> {
        let list = self.sandbox.ecr_runtime().args(["block-volume", "list", "--output", "json"]);
        let listed = list.args(["--sandbox", self.sandbox.id()]).run().await.json();
        listed["volumes"].as_array().unwrap().clone()
    }

    /// Restarts the container, as kubelet does: it gets another ID.
    pub(crate) async fn restart_container(&mut self) {
        self.app.stop().await.unwrap();
        self.container.kill().await.unwrap();
        self.app = self.pod.create_container("app", 1).await.unwrap();
        self.app.start().await.unwrap();
        self.container = self.sandbox.start_container_as(self.app.id()).await;
        self.cluster.container_runs("db-0", self.app.id()).await;
    }

    /// Waits until the container has a block device at `path`, or has none.
    pub(crate) async fn until_device(&self, path: &str, is_there: bool) {
        let container = &self.container;
        until(&format!("{path} in the container: {is_there}"), || async {
            let test = container.try_exec(&["test", "-b", path], b"").await;
            test.is_ok_and(|done| (done.status == 0) == is_there)
        })
        .await;
    }
}

/// The pod `name` runs on `node`, for the API server and for the container engine.
pub(crate) async fn run_pod(
    cluster: &Cluster,
    containerd: &Containerd,
    name: &str,
    node: &str,
) -> (vm_harness::Pod, PodContainer) {
    let made = cluster.run_pod(name, node, "c1").await;
    let options = PodOptions {
        runtime: "kata".to_owned(),
        uid: made.uid().unwrap(),
        ..PodOptions::named(NAMESPACE, name)
    };
    let pod = containerd.run_pod(&options).await.unwrap();
    let app = pod.start_container("app").await.unwrap();
    cluster.container_runs(name, app.id()).await;
    (pod, app)
}

/// An attachment of a path of the node at `/dev/NAME` in the pod `db-0`.
pub(crate) fn host_path(name: &str, path: &str) -> Value {
    let mut one = attachment(name, "db-0");
    one["spec"]["source"] = json!({ "hostPath": { "path": path } });
    one["spec"]["devicePath"] = format!("/dev/{name}").into();
    one
}
