//! The API server is away, and what others do to an attachment.

use block_volume_kubernetes::{
    node::Failure,
    resource::{
        BlockVolumeAttachment, BlockVolumeAttachmentStatus, ConditionType, NODE_LABEL, Truth,
    },
};
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    cluster::Cluster,
    fake_host::FakeHost,
    tenant::{Tenant, attachment, host_path_attachment},
};

use ConditionType::{Accepted, Attached, SourceReady};

#[tokio::test]
async fn an_api_server_that_was_away_is_no_loss() {
    let mut cluster = Cluster::with_pod().await;
    for name in ["one", "two"] {
        cluster.claim(name, "1Gi").await;
    }
    let host = FakeHost::default();
    let _running = (cluster.controller(), cluster.node_agent("node-1", host.clone()));
    let one = cluster.attach("one", "db-0").await;
    cluster.run_attachment_pod(&one).await;
    cluster.until_condition("one", Attached, Truth::True, "Attached").await;

    cluster.server.stop();
    cluster.server.go_on().await;
    cluster.delete("one").await;
    cluster.until_gone("one").await;
    let two = cluster.attach("two", "db-0").await;
    cluster.run_attachment_pod(&two).await;
    cluster.until_condition("two", Attached, Truth::True, "Attached").await;
    assert_eq!(host.attached().len(), 1);
}

#[tokio::test]
async fn a_label_of_a_users_leads_to_no_node() {
    let cluster = Cluster::start().await;
    cluster.create_node("node-1").await;
    let host = FakeHost::default();
    let _agent = cluster.node_agent("node-1", host.clone());
    let mut hostile = attachment("hostile", "db-0");
    hostile["metadata"]["labels"] = json!({ NODE_LABEL: "node-1" });
    cluster.create::<BlockVolumeAttachment>(hostile).await;
    // The controller starts now: what the agent has seen before, it has ignored.
    cluster.run_pod("db-0", "node-1", "c1").await;
    cluster.claim("one", "1Gi").await;
    let _controller = cluster.controller();
    let one = cluster.attach("one", "db-0").await;
    cluster.run_attachment_pod(&one).await;
    cluster.until_condition("one", Attached, Truth::True, "Attached").await;
    assert_eq!(host.calls(), 1);
}

#[tokio::test]
async fn names_lead_to_nothing_in_another_namespace() {
    let cluster = Cluster::with_pod().await;
    cluster.claim("one", "1Gi").await;
    let host = FakeHost::default();
    let _running = (cluster.controller(), cluster.node_agent("node-1", host.clone()));
    let shop = Tenant::create_namespace(&cluster.client, "shop").await;
    // The pod is that of the namespace db.
    shop.attach("one", "db-0").await;
    shop.until_condition("one", Accepted, Truth::False, "PodNotFound").await;
    // So is the claim.
    shop.run_pod("db-0", "node-1", "c2").await;
    shop.until_condition("one", Accepted, Truth::False, "ClaimNotFound").await;
    assert_eq!(host.calls(), 0);
    shop.delete("one").await;
    shop.until_gone("one").await;
}

/// What another client makes of the status of an attachment that is attached.
#[tokio::test]
async fn a_status_that_somebody_overwrites_is_written_again_and_detaches_nothing() {
    let cluster = Cluster::with_pod().await;
    let host = FakeHost::default();
    let _running = (cluster.controller(), cluster.node_agent("node-1", host.clone()));
    let mut path = attachment("path", "db-0");
    path["spec"]["source"] = json!({ "hostPath": { "path": "/dev/vg/one" } });
    let mut claim = attachment("claim", "db-0");
    claim["spec"]["devicePath"] = "/dev/xvdb".into();
    cluster.claim("claim", "1Gi").await;
    let claim: BlockVolumeAttachment = cluster.create(claim).await;
    let pod = cluster.attachment_pod(&claim).await;
    cluster.run_attachment_pod(&claim).await;
    for outdated in [cluster.create(path).await, claim.clone()] {
        overwrite_the_status_of(&cluster, &outdated).await;
    }
    assert_eq!((host.attached().len(), host.detaches()), (2, 0));
    // The attachment pod is the same one.
    assert_eq!(cluster.attachment_pod(&claim).await.uid(), pod.uid());
}

async fn overwrite_the_status_of(cluster: &Cluster, outdated: &BlockVolumeAttachment) {
    let name = &outdated.name_any();
    let attached = cluster.until_condition(name, Attached, Truth::True, "Attached").await;
    let attachments = cluster.api::<BlockVolumeAttachment>();
    let replace = async |value: &BlockVolumeAttachment| {
        attachments.replace_status(name, &PostParams::default(), value).await
    };
    // A client that has read it before is told so.
    match replace(outdated).await {
        Err(kube::Error::Api(status)) => assert!(status.is_conflict(), "{status:?}"),
        other => panic!("{other:?}"),
    }

    let wanted = attached.status.clone().unwrap();
    let without_conditions = BlockVolumeAttachmentStatus { conditions: vec![], ..wanted.clone() };
    for status in [Some(without_conditions), Some(BlockVolumeAttachmentStatus::default()), None] {
        let mut taken = cluster.attachment(name).await.unwrap();
        taken.status = status.clone();
        replace(&taken).await.unwrap();
        let restored = |one: &BlockVolumeAttachment| {
            let status = one.status.clone().unwrap_or_default();
            let [own, wanted] = [&status, &wanted];
            (&own.controller, &own.node) == (&wanted.controller, &wanted.node)
                && [Accepted, SourceReady, Attached].iter().all(|condition| one.is(*condition))
        };
        cluster.until(name, &format!("it is as it was before {status:?}"), restored).await;
    }
}

#[tokio::test]
async fn a_deleted_attachment_with_an_empty_status_stays_until_it_is_detached() {
    let cluster = Cluster::with_pod().await;
    let host = FakeHost::default();
    let _running = (cluster.controller(), cluster.node_agent("node-1", host.clone()));
    let mut path = attachment("one", "db-0");
    path["spec"]["source"] = json!({ "hostPath": { "path": "/dev/vg/one" } });
    cluster.create::<BlockVolumeAttachment>(path).await;
    cluster.until_condition("one", Attached, Truth::True, "Attached").await;

    let (reason, message) = ("Busy".to_owned(), "the volume is in use".to_owned());
    host.fails(Some(Failure { reason, message, passes: true }));
    cluster.delete("one").await;
    cluster.until_condition("one", Attached, Truth::True, "Busy").await;
    let empty = json!({ "status": null });
    let attachments = cluster.api::<BlockVolumeAttachment>();
    let patch = Patch::Merge(&empty);
    attachments.patch_status("one", &PatchParams::default(), &patch).await.unwrap();
    // What the agent does not know any more is whether it is attached.
    cluster.until_condition("one", Attached, Truth::Unknown, "Busy").await;
    assert_eq!(host.attached().len(), 1);
    host.fails(None);
    cluster.until_gone("one").await;
    assert_eq!(host.attached(), []);
}

#[tokio::test]
async fn of_many_for_one_path_exactly_one_is_given() {
    let cluster = Cluster::with_pod().await;
    let host = FakeHost::default();
    let _running = (cluster.controller(), cluster.node_agent("node-1", host.clone()));
    let names: Vec<_> = (0..8).map(|number| format!("a{number}")).collect();
    for name in &names {
        let mut one = attachment(name, "db-0");
        one["spec"]["source"] = json!({ "hostPath": { "path": format!("/dev/vg/{name}") } });
        cluster.create::<BlockVolumeAttachment>(one).await;
    }
    let mut given = Vec::new();
    for name in &names {
        let decided = |one: &BlockVolumeAttachment| one.condition(Accepted).is_some();
        let decided = cluster.until(name, "it is accepted or not", decided).await;
        let accepted = decided.condition(Accepted).unwrap();
        match accepted.reason.as_str() {
            "Given" => given.push(name.clone()),
            reason => assert_eq!(reason, "DevicePathTaken"),
        }
    }
    let [first] = &given[..] else { panic!("{given:?}") };
    cluster.until_condition(first, Attached, Truth::True, "Attached").await;
    assert_eq!(host.attached().len(), 1);
}

#[tokio::test]
async fn a_namespace_whose_guests_do_not_reply_keeps_no_other_one_waiting() {
    let cluster = Cluster::start().await;
    let shop = Tenant::create_namespace(&cluster.client, "shop").await;
    cluster.create_node("node-1").await;
    cluster.run_pod("db-0", "node-1", "c1").await;
    shop.run_pod("shop-0", "node-1", "c2").await;
    let host = FakeHost::default();
    host.hangs("db");
    let _running = (cluster.controller(), cluster.node_agent("node-1", host.clone()));
    for number in 0..16 {
        let one = host_path_attachment(&format!("a{number}"), "db-0");
        cluster.create::<BlockVolumeAttachment>(one).await;
    }
    for number in 0..16 {
        cluster.until_condition(&format!("a{number}"), Accepted, Truth::True, "Given").await;
    }
    crate::wait::until("guests do not reply", || async { host.calls() >= 4 }).await;
    shop.create::<BlockVolumeAttachment>(host_path_attachment("b", "shop-0")).await;
    shop.until_condition("b", Attached, Truth::True, "Attached").await;
    assert_eq!(host.calls(), 5);
}

#[tokio::test]
async fn seventy_five_attachments_are_made_and_deleted_at_once() {
    const COUNT: usize = 75;
    let cluster = Cluster::with_pod().await;
    let host = FakeHost::slow(std::time::Duration::from_millis(50));
    let _running = (cluster.controller(), cluster.node_agent("node-1", host.clone()));
    for number in 0..COUNT {
        let one = host_path_attachment(&format!("a{number}"), "db-0");
        cluster.create::<BlockVolumeAttachment>(one).await;
    }
    for number in 0..COUNT {
        let name = format!("a{number}");
        cluster.until_condition(&name, Attached, Truth::True, "Attached").await;
    }
    assert_eq!(host.attached().len(), COUNT);
    for number in 0..COUNT {
        cluster.delete(&format!("a{number}")).await;
    }
    for number in 0..COUNT {
        cluster.until_gone(&format!("a{number}")).await;
    }
    assert_eq!(host.attached(), []);
}
