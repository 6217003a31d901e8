//! The life of an attachment.

use block_volume_kubernetes::{
    attachment_pod,
    node::Failure,
    resource::{BlockVolumeAttachment, ConditionType, FORCE_ANNOTATION, NODE_LABEL, Truth},
};
use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;

use crate::{
    cluster::{Cluster, NAMESPACE, Running},
    fake_host::FakeHost,
    tenant::attachment,
    wait::until,
};

use ConditionType::{Accepted, Attached, SourceReady};

/// A cluster with one node, a pod there, and a claim.
struct World {
    cluster: Cluster,
    host: FakeHost,
    agent: Option<Running>,
    _controller: Running,
}

impl World {
    async fn new() -> Self {
        let cluster = Cluster::with_pod().await;
        cluster.claim("one", "1Gi").await;
        let host = FakeHost::default();
        let agent = cluster.node_agent("node-1", host.clone());
        let controller = cluster.controller();
        Self { cluster, host, agent: Some(agent), _controller: controller }
    }

    /// The attachment `one`, which is attached.
    async fn attached(&self) -> BlockVolumeAttachment {
        let made = self.cluster.attach("one", "db-0").await;
        self.cluster.run_attachment_pod(&made).await;
        self.cluster.until_condition("one", Attached, Truth::True, "Attached").await
    }
}

#[tokio::test]
async fn a_claim_is_attached_changed_and_detached() {
    let world = World::new().await;
    let cluster = &world.cluster;
    let attached = world.attached().await;
    let status = attached.status.clone().unwrap();
    assert_eq!(status.controller.node_name.as_deref(), Some("node-1"));
    assert_eq!(status.node.size, Some(1 << 30));
    assert_eq!(attached.labels().get(NODE_LABEL).map(String::as_str), Some("node-1"));
    assert!(attached.is(Accepted) && attached.is(SourceReady));
    let [request] = &world.host.attached()[..] else { panic!("{:?}", world.host) };
    assert_eq!((request.container.as_str(), request.iops), ("app", 0));

    // What people see.
    let table = cluster.server.kubectl(&["get", "bva", "--namespace=db"]);
    let row = table.lines().nth(1).unwrap();
    for column in ["one", "db-0", "/dev/xvda", "node-1", "True", "Attached"] {
        assert!(row.contains(column), "{table}");
    }
    let events = Api::<Event>::namespaced(cluster.client.clone(), NAMESPACE);
    let reasons = || async {
        let events = events.list(&ListParams::default()).await.unwrap();
        events.items.into_iter().filter_map(|event| event.reason).collect::<Vec<_>>()
    };
    until("an event of the attach", || async { reasons().await == ["Attached"] }).await;

    // New limits, and a claim that grew, reach the node agent.
    let limits = json!({ "spec": { "limits": { "iops": 500, "bytesPerSecond": "20Mi" } } });
    cluster.patch("one", limits).await;
    let host = world.host.clone();
    until("the limits are on the node", || async {
        host.attached().iter().any(|one| (one.iops, one.bytes_per_second) == (500, 20 << 20))
    })
    .await;
    let calls = host.calls();
    cluster.claim_has("one", "2Gi").await;
    until("the node agent looks at the claim", || async { host.calls() > calls }).await;

    // The same for a container that was restarted.
    let calls = host.calls();
    cluster.container_runs("db-0", "c2").await;
    until("the node agent looks at the container", || async { host.calls() > calls }).await;

    let pod = attachment_pod::name(&attached);
    cluster.delete("one").await;
    cluster.until_gone("one").await;
    assert_eq!(host.attached(), []);
    let pods = cluster.api::<Pod>();
    until("the attachment pod is deleted", || async {
        let pod = pods.get_opt(&pod).await.unwrap();
        pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    })
    .await;
    until("an event of the detach", || async { reasons().await.contains(&"Detached".into()) })
        .await;
}

#[tokio::test]
async fn nothing_is_asked_of_a_node_again_without_a_reason() {
    let world = World::new().await;
    world.attached().await;
    let calls = world.host.calls();
    // A change that is none for the node agent: it sees the event, and a later one that is.
    world.cluster.patch("one", json!({ "metadata": { "labels": { "a": "b" } } })).await;
    world.cluster.patch("one", json!({ "spec": { "limits": { "iops": 1 } } })).await;
    until("the limit is on the node", || async {
        world.host.attached().iter().any(|one| one.iops == 1)
    })
    .await;
    assert_eq!(world.host.calls(), calls + 1);
}

#[tokio::test]
async fn a_volume_in_use_stays_until_it_is_released_or_force_is_asked_for() {
    let world = World::new().await;
    world.attached().await;
    let busy = Failure { reason: "Busy".into(), message: "cat (7)".into(), passes: true };
    world.host.fails(Some(busy));
    world.cluster.delete("one").await;
    let one = world.cluster.until_condition("one", Attached, Truth::True, "Busy").await;
    assert_eq!(one.condition(Attached).unwrap().message, "cat (7)");
    let force = json!({ "metadata": { "annotations": { FORCE_ANNOTATION: "the disk is lost" } } });
    world.cluster.patch("one", force).await;
    world.cluster.until_gone("one").await;
    assert_eq!(world.host.attached(), []);
}

#[tokio::test]
async fn a_new_pod_of_the_name_on_another_node_gets_the_volume() {
    let world = World::new().await;
    let cluster = &world.cluster;
    let first = world.attached().await;
    cluster.create_node("node-2").await;
    let second_host = FakeHost::default();
    let _second = cluster.node_agent("node-2", second_host.clone());
    cluster.delete_pod("db-0").await;
    cluster.until_condition("one", Accepted, Truth::False, "PodNotFound").await;
    assert_eq!(world.host.attached(), []);
    let pods = cluster.api::<Pod>();
    assert!(pods.get_opt(&attachment_pod::name(&first)).await.unwrap().is_none());
    cluster.run_pod("db-0", "node-2", "c9").await;
    let made = cluster.until_condition("one", Accepted, Truth::True, "Given").await;
    cluster.run_attachment_pod(&made).await;
    cluster
        .until("one", "node-2 has it", |one| {
            one.is(Attached) && one.labels().get(NODE_LABEL).is_some_and(|node| node == "node-2")
        })
        .await;
    assert_eq!(second_host.attached().len(), 1);
}

#[tokio::test]
async fn a_refusal_names_its_reason_and_ends_with_it() {
    let world = World::new().await;
    let cluster = &world.cluster;
    cluster.attach("two", "db-0").await;
    let refused = cluster.until_condition("two", Accepted, Truth::False, "ClaimNotFound").await;
    assert_eq!(refused.finalizers().len(), 0);
    cluster.claim("two", "1Gi").await;
    let given = cluster.until_condition("two", Accepted, Truth::True, "Given").await;
    cluster.run_attachment_pod(&given).await;
    cluster.until_condition("two", Attached, Truth::True, "Attached").await;

    // The path is taken until the first one has gone.
    cluster.attach("one", "db-0").await;
    let refused = cluster.until_condition("one", Accepted, Truth::False, "DevicePathTaken").await;
    assert!(refused.condition(Accepted).unwrap().message.contains("two"));
    cluster.delete("two").await;
    cluster.until_gone("two").await;
    cluster.until_condition("one", Accepted, Truth::True, "Given").await;
}

#[tokio::test]
async fn a_host_path_needs_no_attachment_pod() {
    let world = World::new().await;
    let mut host_path = attachment("path", "db-0");
    host_path["spec"]["source"] = json!({ "hostPath": { "path": "/dev/vg/scratch" } });
    let made: BlockVolumeAttachment = world.cluster.create(host_path).await;
    world.cluster.until_condition("path", Attached, Truth::True, "Attached").await;
    let pods = world.cluster.api::<Pod>();
    assert!(pods.get_opt(&attachment_pod::name(&made)).await.unwrap().is_none());
}

#[tokio::test]
async fn an_agent_that_was_away_makes_up_for_it() {
    let mut world = World::new().await;
    world.attached().await;
    world.agent = None;
    world.cluster.delete("one").await;
    world.cluster.until_condition("one", Accepted, Truth::False, "Deleted").await;
    assert_eq!(world.host.attached().len(), 1);
    world.agent = Some(world.cluster.node_agent("node-1", world.host.clone()));
    world.cluster.until_gone("one").await;
    assert_eq!(world.host.attached(), []);
}

#[tokio::test]
async fn the_attachment_of_a_node_that_is_gone_can_be_deleted() {
    let mut world = World::new().await;
    world.attached().await;
    world.agent = None;
    world.cluster.delete_node("node-1").await;
    world.cluster.delete("one").await;
    world.cluster.until_gone("one").await;
}
