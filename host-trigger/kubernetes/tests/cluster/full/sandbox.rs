//! With a real sandbox.

use block_volume_kubernetes::resource::{
    BlockVolumeAttachment, ConditionType, FORCE_ANNOTATION, Truth,
};
use serde_json::json;
use vm_harness::{Environment, Machine, Sandbox, Snapshot, Volume};

use crate::{
    cluster::NAMESPACE,
    kata_node::{KataNode, host_path, run_pod},
    tenant::attachment,
};

use ConditionType::{Accepted, Attached};

const MIB: u64 = 1 << 20;

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
    let listed = node.listed().await;
    assert_eq!(listed[0]["throttle"]["iops"]["limit"], 500, "{listed:#?}");

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
    node.restart_container().await;
    node.until_device("/dev/xvda", true).await;
    assert_eq!(node.container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    node.cluster.delete("one").await;
    node.cluster.until_gone("one").await;
    volume.check_claimable().unwrap();
}

/// Starts a process in the container that holds /dev/xvda, and returns its ID there. The
/// container's own process is a sleep.
async fn hold(node: &KataNode) -> String {
    let hold = "tail -f /dev/null </dev/xvda >/dev/null 2>&1 & echo $!";
    let printed = node.container.exec(&["sh", "-c", hold]).await;
    String::from_utf8(printed).unwrap().trim().to_owned()
}

/// Deletes the attachment, and waits until its condition names the holder.
async fn delete_while_busy(node: &KataNode, name: &str) {
    node.cluster.delete(name).await;
    let busy = node.cluster.until(name, "its holder is named", |one| {
        one.condition(Attached).is_some_and(|condition| condition.message.contains("tail"))
    });
    assert_eq!(busy.await.condition(Attached).unwrap().status, Truth::True);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_in_use_is_detached_when_its_holder_lets_go_or_by_force() {
    let node = KataNode::new(&[]).await;
    let before = Snapshot::of(&node.sandbox, &[&node.container]).await;
    let volume = Volume::image(MIB);
    node.attach("one", &volume).await;
    node.cluster.until_condition("one", Attached, Truth::True, "Attached").await;
    let holder = hold(&node).await;
    delete_while_busy(&node, "one").await;
    node.container.exec(&["sh", "-c", &format!("kill {holder}")]).await;
    node.cluster.until_gone("one").await;
    before.assert_unchanged(&node.sandbox, &[&node.container]).await;

    node.attach("two", &volume).await;
    node.cluster.until_condition("two", Attached, Truth::True, "Attached").await;
    hold(&node).await;
    delete_while_busy(&node, "two").await;
    let force = json!({ "metadata": { "annotations": { FORCE_ANNOTATION: "it hangs" } } });
    node.cluster.patch("two", force).await;
    node.cluster.until_gone("two").await;
    volume.check_claimable().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_deleted_leaves_nothing_in_its_sandbox() {
    let node = KataNode::new(&[]).await;
    let before = Snapshot::of(&node.sandbox, &[&node.container]).await;
    let volume = Volume::image(MIB);
    node.attach("one", &volume).await;
    node.cluster.until_condition("one", Attached, Truth::True, "Attached").await;
    // kubelet has not ended its sandbox yet.
    node.cluster.delete_pod("db-0").await;
    node.cluster.until_condition("one", Attached, Truth::False, "Detached").await;
    node.cluster.until_condition("one", Accepted, Truth::False, "PodNotFound").await;
    before.assert_unchanged(&node.sandbox, &[&node.container]).await;
    volume.check_claimable().unwrap();
    node.cluster.delete("one").await;
    node.cluster.until_gone("one").await;
}

/// Both pods have a sandbox of their own. Their nodes are this machine, as storage that two nodes
/// reach.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_pods_one_has_the_volume_of_a_claim_that_both_may_use() {
    let node = KataNode::new(&[]).await;
    let volume = Volume::image(MIB);
    let cluster = &node.cluster;
    cluster.claim_with("one", "16Mi", "ReadWriteMany").await;
    cluster.create_node("node-2").await;
    let (pod, app) = run_pod(cluster, &node.containerd, "db-1", "node-2").await;
    let environment = Environment::from_variables();
    let second = Sandbox::boot_as_in(&environment, pod.id(), &Machine::default()).await.unwrap();
    let container = second.start_container_as(app.id()).await;
    let before = Snapshot::of(&second, &[&container]).await;
    let mut host = node.host.clone();
    host.run_dir = Some(second.run_dir().to_owned());
    let _second_agent = cluster.node_agent("node-2", host);

    let one = cluster.attach("one", "db-0").await;
    node.publish(&one, &volume).await;
    cluster.until_condition("one", Attached, Truth::True, "Attached").await;
    let mut two = attachment("two", "db-1");
    two["spec"]["source"] = json!({ "persistentVolumeClaim": { "claimName": "one" } });
    let two: BlockVolumeAttachment = cluster.create(two).await;
    cluster.until_condition("two", Accepted, Truth::True, "Given").await;
    node.publish(&two, &volume).await;
    let refused = cluster.until("two", "it is refused", |two| {
        two.condition(Attached).is_some_and(|condition| condition.status == Truth::False)
    });
    let refused = refused.await;
    let condition = refused.condition(Attached).unwrap();
    assert_eq!(condition.reason, "SourceHeld", "{condition:?}");
    before.assert_unchanged(&second, &[&container]).await;

    // The second one gets it when the first one has gone.
    cluster.delete("one").await;
    cluster.until_gone("one").await;
    cluster.until_condition("two", Attached, Truth::True, "Attached").await;
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    cluster.delete("two").await;
    cluster.until_gone("two").await;
    volume.check_claimable().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_of_the_node_is_used_where_it_is_allowed() {
    let volume = Volume::image(MIB);
    let directory = volume.path().parent().unwrap().display().to_string();
    let node = KataNode::new(&[&format!("{NAMESPACE}={directory}")]).await;
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
