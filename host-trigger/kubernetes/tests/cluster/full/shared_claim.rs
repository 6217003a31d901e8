//! One claim for two pods on two nodes.

use block_volume_kubernetes::{
    attachment_pod,
    resource::{BlockVolumeAttachment, ConditionType, Truth},
};
use serde_json::json;

use crate::{
    cluster::{Cluster, Running},
    fake_host::FakeHost,
    tenant::attachment,
};

use ConditionType::{Accepted, Attached};

const NODES: [&str; 2] = ["node-1", "node-2"];

/// Two nodes with a pod each, `db-0` and `db-1`. The attachment `one` has brought the claim to the
/// first one, and the attachment `two` is for the second.
struct World {
    cluster: Cluster,
    hosts: [FakeHost; 2],
    one: BlockVolumeAttachment,
    two: BlockVolumeAttachment,
    _running: Vec<Running>,
}

impl World {
    async fn new(access_mode: &str) -> Self {
        let cluster = Cluster::start().await;
        cluster.claim_with("one", "1Gi", access_mode).await;
        let hosts = [FakeHost::default(), FakeHost::default()];
        let mut running = vec![cluster.controller()];
        for ((node, pod), host) in NODES.into_iter().zip(["db-0", "db-1"]).zip(&hosts) {
            cluster.create_node(node).await;
            cluster.run_pod(pod, node, "c1").await;
            running.push(cluster.node_agent(node, host.clone()));
        }
        let one = cluster.attach("one", "db-0").await;
        cluster.attachment_pod(&one).await;
        cluster.schedule(&attachment_pod::name(&one), NODES[0]).await;
        cluster.run_attachment_pod(&one).await;
        cluster.until_condition("one", Attached, Truth::True, "Attached").await;
        let mut two = attachment("two", "db-1");
        two["spec"]["source"] = json!({ "persistentVolumeClaim": { "claimName": "one" } });
        two["spec"]["devicePath"] = "/dev/other".into();
        let two = cluster.create(two).await;
        Self { cluster, hosts, one, two, _running: running }
    }

    async fn until_second_is_attached(&self) {
        self.cluster.until_condition("two", Accepted, Truth::True, "Given").await;
        self.cluster.run_attachment_pod(&self.two).await;
        self.cluster.until_condition("two", Attached, Truth::True, "Attached").await;
        assert_eq!(self.hosts[1].attached().len(), 1);
    }
}

#[tokio::test]
async fn a_claim_for_one_node_goes_to_another_one_when_the_first_has_let_it_go() {
    let world = World::new("ReadWriteOnce").await;
    let cluster = &world.cluster;
    let refused = cluster.until_condition("two", Accepted, Truth::False, "ClaimOnOtherNode").await;
    let pod = attachment_pod::name(&world.one);
    let message = &refused.condition(Accepted).unwrap().message;
    assert!(message.contains(&pod) && message.contains(NODES[0]), "{message}");
    assert_eq!(world.hosts[1].calls(), 0);

    cluster.delete("one").await;
    cluster.until_gone("one").await;
    assert_eq!(world.hosts[0].attached(), []);
    // Until kubelet has ended the attachment pod, the claim is on the first node.
    cluster.delete_pod(&pod).await;
    world.until_second_is_attached().await;
}

#[tokio::test]
async fn a_claim_for_many_nodes_is_given_to_both() {
    let world = World::new("ReadWriteMany").await;
    world.until_second_is_attached().await;
    assert_eq!(world.hosts[0].attached().len(), 1);
}
