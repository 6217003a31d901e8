//! With a real sandbox: its pod is containerd's, its VM is the harness's, and the volume is in
//! kubelet's directory as kubelet would put it there.

use std::{fs, os::unix::fs::symlink, time::Duration};

use block_volume_kubernetes::{
    node::{AllowedPath, SandboxHost},
    resource::{BlockVolumeAttachment, ConditionType, FORCE_ANNOTATION, Truth},
};
use kube::ResourceExt as _;
use serde_json::json;
use vm_harness::{
    Container, Containerd, Environment, Machine, PodContainer, PodOptions, Sandbox, Snapshot,
    Volume,
};

use crate::cluster::{Cluster, NAMESPACE, Running, attachment};

use ConditionType::Attached;

const MIB: u64 = 1 << 20;

/// A node with one pod of Kata's.
pub(super) struct KataNode {
    pub(super) cluster: Cluster,
    pub(super) containerd: Containerd,
    pub(super) pod: vm_harness::Pod,
    pub(super) app: PodContainer,
    pub(super) sandbox: Sandbox,
    pub(super) container: Container,
    pub(super) host: SandboxHost,
    /// kubelet's directory.
    kubelet: tempfile::TempDir,
    pub(super) agent: Option<Running>,
    _controller: Running,
}

impl KataNode {
    pub(super) async fn new(allowed: &[&str]) -> Self {
        let cluster = Cluster::start().await;
        cluster.create_node("node-1").await;
        let made = cluster.run_pod("db-0", "node-1", "c1").await;
        let environment = Environment::from_variables();
        let containerd = Containerd::start(&environment, "bookworm").await.unwrap();
        let options = PodOptions {
            runtime: "kata".to_owned(),
            uid: made.uid().unwrap(),
            ..PodOptions::named(NAMESPACE, "db-0")
        };
        let pod = containerd.run_pod(&options).await.unwrap();
        let app = pod.start_container("app").await.unwrap();
        cluster.container_runs("db-0", app.id()).await;
        let sandbox = Sandbox::boot_as(pod.id(), &Machine::default()).await.unwrap();
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
        let mut this = Self {
            cluster,
            containerd,
            pod,
            app,
            sandbox,
            container,
            host,
            kubelet,
            agent: None,
            _controller: controller,
        };
        this.start_agent();
        this
    }

    pub(super) fn start_agent(&mut self) {
        self.agent = Some(self.cluster.node_agent("node-1", self.host.clone()));
    }

    /// Creates an attachment of a claim, and does what kubelet does for its attachment pod.
    pub(super) async fn attach(&self, name: &str, volume: &Volume) -> BlockVolumeAttachment {
        self.cluster.claim(name, "16Mi").await;
        let made = self.cluster.attach(name, "db-0").await;
        self.publish(&made, volume).await;
        made
    }

    /// kubelet and the container engine run the attachment pod: `volume` is on the node.
    pub(super) async fn publish(&self, attachment: &BlockVolumeAttachment, volume: &Volume) {
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_a_disk_in_the_container_until_its_attachment_is_deleted() {
    let mut node = KataNode::new(&[]).await;
    let before = Snapshot::of(&node.sandbox, &[&node.container]).await;
    let volume = Volume::image(16 * MIB);
    node.attach("one", &volume).await;
    let attached = node.cluster.until_condition("one", Attached, Truth::True, "Attached").await;
    let status = attached.status.unwrap().node;
    assert_eq!(status.size, Some(16 << 20));
    let container = &node.container;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    container.write("/dev/xvda", 4096, b"written in the container").await;
    assert_eq!(volume.bytes(4096..4120), b"written in the container");

    // An agent that is killed finds what it has done.
    node.agent = None;
    node.start_agent();

    // The claim grows, and its limits are set.
    volume.resize(32 * MIB);
    node.cluster.claim_has("one", "32Mi").await;
    node.cluster
        .until("one", "32 MiB", |one| {
            one.status.as_ref().is_some_and(|status| status.node.size == Some(32 << 20))
        })
        .await;
    node.cluster.patch("one", json!({ "spec": { "limits": { "iops": 500 } } })).await;
    node.cluster
        .until("one", "its generation is seen", |one| {
            one.status
                .as_ref()
                .is_some_and(|status| status.node.observed_generation == one.metadata.generation)
        })
        .await;
    let listed = node.sandbox.ecr_runtime().args(["block-volume", "list", "--output", "json"]);
    let listed = listed.args(["--sandbox", node.sandbox.id()]).run().await.json();
    assert_eq!(listed["volumes"][0]["throttle"]["iops"]["limit"], 500, "{listed:#}");

    node.cluster.delete("one").await;
    node.cluster.until_gone("one").await;
    before.assert_unchanged(&node.sandbox, &[&node.container]).await;
    volume.check_claimable().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_restarted_gets_its_volume_again() {
    let mut node = KataNode::new(&[]).await;
    let volume = Volume::image(MIB);
    node.attach("one", &volume).await;
    node.cluster.until_condition("one", Attached, Truth::True, "Attached").await;
    node.app.stop().await.unwrap();
    node.container.kill().await.unwrap();
    node.app = node.pod.create_container("app", 1).await.unwrap();
    node.app.start().await.unwrap();
    node.container = node.sandbox.start_container_as(node.app.id()).await;
    node.cluster.container_runs("db-0", node.app.id()).await;
    let container = &node.container;
    crate::wait::until("the new container has the volume", || async {
        container
            .try_exec(&["test", "-b", "/dev/xvda"], b"")
            .await
            .is_ok_and(|done| done.status == 0)
    })
    .await;
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    node.cluster.delete("one").await;
    node.cluster.until_gone("one").await;
    volume.check_claimable().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_in_use_is_detached_by_force_alone_and_its_holder_is_named() {
    let node = KataNode::new(&[]).await;
    let volume = Volume::image(MIB);
    node.attach("one", &volume).await;
    node.cluster.until_condition("one", Attached, Truth::True, "Attached").await;
    let hold = node.container.exec(&["sh", "-c", "sleep 100000 </dev/xvda >/dev/null 2>&1 &"]);
    hold.await;
    node.cluster.delete("one").await;
    let busy = node.cluster.until("one", "its holder is named", |one| {
        one.condition(Attached).is_some_and(|condition| condition.message.contains("sleep"))
    });
    let busy = busy.await;
    assert_eq!(busy.condition(Attached).unwrap().status, Truth::True);
    let force = json!({ "metadata": { "annotations": { FORCE_ANNOTATION: "it hangs" } } });
    node.cluster.patch("one", force).await;
    node.cluster.until_gone("one").await;
    volume.check_claimable().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_of_the_node_is_used_where_it_is_allowed() {
    let volume = Volume::image(MIB);
    let directory = volume.path().parent().unwrap().display().to_string();
    let node = KataNode::new(&[&format!("{NAMESPACE}={directory}")]).await;
    let host_path = |name: &str, path: &str| {
        let mut one = attachment(name, "db-0");
        one["spec"]["source"] = json!({ "hostPath": { "path": path } });
        one["spec"]["devicePath"] = format!("/dev/{name}").into();
        one
    };
    node.cluster.create::<BlockVolumeAttachment>(host_path("one", volume.name())).await;
    node.cluster.create::<BlockVolumeAttachment>(host_path("two", "/dev/null")).await;
    node.cluster.until_condition("one", Attached, Truth::True, "Attached").await;
    node.cluster.until_condition("two", Attached, Truth::False, "HostPathNotAllowed").await;
    let read = node.container.read("/dev/one", 0..4096).await;
    assert_eq!(read, volume.bytes(0..4096));
    for name in ["two", "one"] {
        node.cluster.delete(name).await;
        node.cluster.until_gone(name).await;
    }
    volume.check_claimable().unwrap();
}
