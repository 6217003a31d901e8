use rstest::rstest;
use serde_json::json;

use super::*;
use crate::{
    attachment_pod,
    resource::{BlockVolumeAttachment, NODE_LABEL, NodeStatus, POD_UID_ANNOTATION},
    sample::{self, object},
};

fn observed() -> Observed {
    Observed {
        attachment: sample::attachment(),
        is_restored: false,
        pod: Some(sample::pod()),
        claim: Some(sample::claim()),
        attachment_pod: None,
        node_exists: true,
        same_place: Vec::new(),
        claim_users: Vec::new(),
    }
}

/// Carries out `plan` on what was observed.
fn carry_out(mut observed: Observed, plan: &Plan) -> Observed {
    let attachment = &mut observed.attachment;
    attachment.metadata.finalizers = plan.finalizer.then(|| vec![FINALIZER.to_owned()]);
    attachment.metadata.labels = plan.node.clone().map(|node| [(NODE_LABEL.into(), node)].into());
    let pod_uid = plan.status.as_ref().and_then(|(status, _)| status.pod_uid.clone());
    attachment.metadata.annotations = pod_uid.map(|uid| [(POD_UID_ANNOTATION.into(), uid)].into());
    if let Some((controller, conditions)) = &plan.status {
        let status = attachment.status.get_or_insert_default();
        status.controller = controller.clone();
        status.conditions.retain(|one| one.condition_type == ConditionType::Attached);
        status.conditions.extend(conditions.clone());
    }
    match &plan.attachment_pod {
        PodAction::Create { node, claim } => {
            let pod = attachment_pod::new(&observed.attachment, claim, node, "image").unwrap();
            observed.attachment_pod = Some(object(json!(pod)));
        }
        PodAction::Delete => observed.attachment_pod = None,
        PodAction::Keep => {}
    }
    observed
}

fn given() -> Observed {
    let mut given = carry_out(observed(), &Plan::new(&observed()));
    let pod = given.attachment_pod.as_mut().unwrap();
    pod.status = object(json!({ "phase": "Running" }));
    given
}

/// Something happens to an attachment, or to what belongs to it.
type Change = fn(&mut Observed);

#[test]
fn what_is_as_planned_is_done_and_nothing_else_is() {
    let is_done = |observed: &Observed| Plan::new(observed).is_done(observed);
    let created = observed();
    assert!(!is_done(&created));
    // Its attachment pod runs now, which the status does not say yet.
    assert!(!is_done(&given()));
    let settled = carry_out(given(), &Plan::new(&given()));
    assert!(is_done(&settled));
    let changes: [(&str, Change); 12] = [
        ("no finalizer", |one| one.attachment.metadata.finalizers = None),
        ("no label", |one| one.attachment.metadata.labels = None),
        ("no annotation", |one| one.attachment.metadata.annotations = None),
        ("no status", |one| one.attachment.status = None),
        ("no conditions", |one| one.attachment.status.as_mut().unwrap().conditions.clear()),
        ("restored", |one| one.is_restored = true),
        ("pod gone", |one| one.pod = None),
        ("pod replaced", |one| one.pod.as_mut().unwrap().metadata.uid = Some("new".to_owned())),
        ("container started again", |one| {
            one.pod.as_mut().unwrap().status = object(json!({ "phase": "Running",
                "containerStatuses": [{ "name": "postgres", "containerID": "c2",
                    "state": { "running": {} } }] }));
        }),
        ("claim grown", |one| {
            let status = &mut one.claim.as_mut().unwrap().status;
            status.capacity.storage = Some("2Gi".to_owned());
        }),
        ("attachment pod gone", |one| one.attachment_pod = None),
        ("attachment pod failed", |one| {
            one.attachment_pod.as_mut().unwrap().status = object(json!({ "phase": "Failed" }));
        }),
    ];
    for (what, change) in changes {
        let mut changed = settled.clone();
        change(&mut changed);
        assert!(!is_done(&changed), "{what}");
    }
}

/// What the node agent says when nothing is attached any more.
fn detached(mut observed: Observed) -> Observed {
    let generation = observed.attachment.metadata.generation;
    let status = observed.attachment.status.get_or_insert_default();
    status.node = NodeStatus {
        observed_pod_uid: status.controller.pod_uid.clone(),
        observed_generation: generation,
        ..NodeStatus::default()
    };
    let reason = crate::resource::DETACHED;
    status.conditions.push(Condition::new(ConditionType::Attached, Truth::False, reason, ""));
    observed
}

/// A client has emptied the status.
fn emptied(mut observed: Observed) -> Observed {
    observed.attachment.status = None;
    observed.restore();
    observed
}

fn deleted(mut observed: Observed) -> Observed {
    observed.attachment.metadata.deletion_timestamp = object(json!("2026-01-01T00:00:00Z"));
    observed.attachment.metadata.generation = Some(2);
    observed
}

fn accepted_reason(plan: &Plan) -> (Truth, &str) {
    let (_, conditions) = plan.status.as_ref().unwrap();
    (conditions[0].status, conditions[0].reason.as_str())
}

#[test]
fn an_attachment_is_given_to_the_node_of_its_pod() {
    let plan = Plan::new(&observed());
    assert!(plan.finalizer);
    assert_eq!(plan.node.as_deref(), Some("node-1"));
    let (node, claim) = ("node-1".to_owned(), "scratch".to_owned());
    assert_eq!(plan.attachment_pod, PodAction::Create { node, claim });
    let (status, _) = plan.status.as_ref().unwrap();
    assert_eq!(status.pod_uid.as_deref(), Some("pod-1"));
    assert_eq!(status.container_id.as_deref(), Some("containerd://c1"));
    assert_eq!(status.claim_capacity.as_deref(), Some("1Gi"));
    assert_eq!(accepted_reason(&plan), (Truth::True, "Given"));
}

#[test]
fn a_host_path_needs_no_attachment_pod() {
    let mut observed = Observed { claim: None, ..observed() };
    observed.attachment.spec.source = object(json!({ "hostPath": { "path": "/dev/vg/scratch" } }));
    let plan = Plan::new(&observed);
    assert_eq!(plan.attachment_pod, PodAction::Keep);
    let (_, conditions) = plan.status.unwrap();
    assert_eq!((conditions[1].status, conditions[1].reason.as_str()), (Truth::True, "HostPath"));
}

#[test]
fn a_plan_that_was_carried_out_is_the_same_again() {
    let given = given();
    let first = Plan::new(&given);
    let (_, conditions) = first.status.as_ref().unwrap();
    assert_eq!(conditions[1].reason, "AttachmentPodRuns");
    let second = Plan::new(&carry_out(given.clone(), &first));
    assert_eq!(first, second);
}

#[rstest]
#[case::no_pod(|o: &mut Observed| o.pod = None, "PodNotFound")]
#[case::not_scheduled(|o: &mut Observed| pod_of(o).spec.node_name = None,
    "PodNotRunning")]
#[case::ended(|o: &mut Observed| pod_of(o).status = object(json!({ "phase": "Succeeded" })),
    "PodNotRunning")]
#[case::container(|o: &mut Observed| o.attachment.spec.container_name = "other".into(),
    "ContainerNotFound")]
#[case::no_claim(|o: &mut Observed| o.claim = None, "ClaimNotFound")]
#[case::file_system(|o: &mut Observed| o.claim = object(json!({
    "metadata": {}, "spec": { "volumeMode": "Filesystem" } })), "ClaimNotBlock")]
#[case::elsewhere(|o: &mut Observed| o.claim_users = vec![object(json!({
    "metadata": { "name": "other" }, "spec": { "nodeName": "node-2", "containers": [] } }))],
    "ClaimOnOtherNode")]
#[case::name_taken(|o: &mut Observed| o.attachment_pod = object(json!({
    "metadata": { "name": "x", "ownerReferences": [] } })), "AttachmentPodNameTaken")]
#[case::path_taken(|o: &mut Observed| o.same_place = vec![rival()], "DevicePathTaken")]
#[case::mount_taken(|o: &mut Observed| {
    o.same_place = vec![rival()];
    o.attachment = sample::mount();
}, "MountPathTaken")]
fn what_cannot_be_attached_is_refused_with_a_reason(
    #[case] change: fn(&mut Observed),
    #[case] reason: &str,
) {
    let mut observed = observed();
    change(&mut observed);
    let plan = Plan::new(&observed);
    assert_eq!(accepted_reason(&plan), (Truth::False, reason));
    assert_eq!((plan.finalizer, plan.node.clone()), (false, None));
    assert_eq!(plan.attachment_pod, PodAction::Keep);
}

fn pod_of(observed: &mut Observed) -> &mut Pod {
    observed.pod.as_mut().unwrap()
}

fn rival() -> BlockVolumeAttachment {
    let mut rival = given().attachment;
    rival.metadata.uid = Some("uid-2".to_owned());
    rival.metadata.name = Some("first".to_owned());
    rival
}

#[test]
fn a_claim_that_several_nodes_may_use_is_not_refused() {
    let mut observed = observed();
    observed.claim = object(json!({ "metadata": {}, "spec": {
        "volumeMode": "Block", "accessModes": ["ReadWriteMany"] } }));
    observed.claim_users = vec![object(json!({
        "metadata": { "name": "other" }, "spec": { "nodeName": "node-2", "containers": [] } }))];
    assert_eq!(accepted_reason(&Plan::new(&observed)), (Truth::True, "Given"));
}

#[test]
fn an_attachment_that_was_not_given_keeps_none_from_its_path() {
    let mut waiting = sample::attachment();
    waiting.metadata.uid = Some("uid-2".to_owned());
    let plan = Plan::new(&Observed { same_place: vec![waiting], ..observed() });
    assert_eq!(accepted_reason(&plan), (Truth::True, "Given"));
}

#[test]
fn a_deleted_attachment_stays_until_its_node_agent_has_detached_the_volume() {
    let waiting = deleted(given());
    let plan = Plan::new(&waiting);
    assert!(plan.finalizer);
    assert_eq!((plan.node.as_deref(), &plan.attachment_pod), (Some("node-1"), &PodAction::Keep));
    // What was said before it was deleted is not about its deletion.
    assert!(Plan::new(&deleted(detached(given()))).finalizer);
    let plan = Plan::new(&detached(waiting));
    assert_eq!((plan.finalizer, plan.attachment_pod), (false, PodAction::Delete));
}

#[test]
fn an_attachment_that_was_never_given_is_deleted_at_once() {
    let plan = Plan::new(&deleted(observed()));
    assert_eq!((plan.finalizer, plan.node), (false, None));
}

#[test]
fn a_new_pod_of_the_name_gets_the_volume_when_the_old_one_has_let_it_go() {
    let mut replaced = given();
    let pod = pod_of(&mut replaced);
    pod.metadata.uid = Some("pod-2".to_owned());
    pod.spec.node_name = Some("node-2".to_owned());
    let plan = Plan::new(&replaced);
    assert_eq!(accepted_reason(&plan), (Truth::False, "PodGone"));
    assert_eq!(plan.node.as_deref(), Some("node-1"));
    assert_eq!(plan.attachment_pod, PodAction::Keep);

    let plan = Plan::new(&detached(carry_out(replaced.clone(), &plan)));
    assert_eq!(plan.attachment_pod, PodAction::Delete);
    assert_eq!(
        (plan.node.as_deref(), accepted_reason(&plan).1),
        (None, "AttachmentPodTerminating")
    );

    let plan = Plan::new(&carry_out(detached(replaced), &plan));
    assert_eq!((plan.node.as_deref(), accepted_reason(&plan).1), (Some("node-2"), "Given"));
}

#[test]
fn an_attachment_whose_status_was_emptied_is_given_to_whom_it_was() {
    let before = Plan::new(&given());
    let after = Plan::new(&emptied(given()));
    assert_eq!((after.node.as_deref(), &after.attachment_pod), (Some("node-1"), &PodAction::Keep));
    assert_eq!(after.status.as_ref().unwrap().0, before.status.unwrap().0);
    assert_eq!(accepted_reason(&after), (Truth::True, "Given"));

    let mut path = observed();
    path.attachment.spec.source = object(json!({ "hostPath": { "path": "/dev/vg/scratch" } }));
    let path = carry_out(path.clone(), &Plan::new(&path));
    assert!(emptied(path).is_restored);
}

#[test]
fn what_may_be_attached_is_not_forgotten_with_the_status() {
    let plan = Plan::new(&emptied(deleted(given())));
    assert_eq!((plan.finalizer, plan.attachment_pod), (true, PodAction::Keep));
    let mut replaced = given();
    pod_of(&mut replaced).metadata.uid = Some("pod-2".to_owned());
    let plan = Plan::new(&emptied(replaced));
    assert_eq!(accepted_reason(&plan), (Truth::False, "PodGone"));
    assert_eq!((plan.node.as_deref(), plan.attachment_pod), (Some("node-1"), PodAction::Keep));
    // Its path is not free either.
    let mut rival = rival();
    rival.status = None;
    let plan = Plan::new(&Observed { same_place: vec![rival], ..observed() });
    assert_eq!(accepted_reason(&plan), (Truth::False, "DevicePathTaken"));
}

#[rstest]
#[case::without_its_pod(|o: &mut Observed| o.attachment_pod = None)]
#[case::pod_of_another(|o: &mut Observed| {
    o.attachment_pod.as_mut().unwrap().metadata.owner_references = None;
})]
#[case::another_node(|o: &mut Observed| pod_of(o).spec.node_name = None)]
#[case::no_finalizer(|o: &mut Observed| o.attachment.metadata.finalizers = None)]
fn a_record_that_anybody_could_make_is_not_believed(#[case] change: fn(&mut Observed)) {
    let mut forged = given();
    change(&mut forged);
    assert!(!emptied(forged).is_restored);
}

#[test]
fn the_controller_speaks_for_a_node_that_is_gone() {
    for gone in [given(), deleted(given())] {
        let plan = Plan::new(&Observed { node_exists: false, ..gone });
        assert!(plan.speaks_for_node && plan.finalizer);
        assert_eq!(accepted_reason(&plan), (Truth::False, "NodeGone"));
    }
}

#[test]
fn an_attachment_pod_that_was_removed_is_made_again() {
    let plan = Plan::new(&Observed { attachment_pod: None, ..given() });
    assert!(matches!(plan.attachment_pod, PodAction::Create { .. }));
    let (_, conditions) = plan.status.unwrap();
    assert_eq!(conditions[1].reason, "AttachmentPodMissing");
}

#[test]
fn why_an_attachment_pod_was_refused_is_said_until_it_is_there() {
    let mut refused = Observed { attachment_pod: None, ..given() };
    let why = pod_is_refused(&refused.attachment, "scratch-bva-1", "exceeded quota");
    let conditions = &mut refused.attachment.status.as_mut().unwrap().conditions;
    conditions.retain(|one| one.condition_type != ConditionType::SourceReady);
    conditions.push(why.clone());
    let plan = Plan::new(&refused);
    assert!(matches!(plan.attachment_pod, PodAction::Create { .. }));
    assert_eq!(plan.status.unwrap().1[1], why);
    let made = Observed { attachment_pod: given().attachment_pod, ..refused };
    assert_eq!(Plan::new(&made).status.unwrap().1[1].reason, "AttachmentPodRuns");
}

#[test]
fn what_kubelet_says_of_a_pod_that_it_evicted_is_shown() {
    let mut evicted = given();
    evicted.attachment_pod.as_mut().unwrap().status = object(json!({
        "phase": "Failed", "reason": "Evicted", "message": "The node was low on memory" }));
    let (_, conditions) = Plan::new(&evicted).status.unwrap();
    assert!(conditions[1].message.contains("The node was low on memory"), "{conditions:?}");
}

#[test]
fn an_attachment_pod_that_was_evicted_is_removed() {
    let mut evicted = given();
    evicted.attachment_pod.as_mut().unwrap().status = object(json!({ "phase": "Failed" }));
    assert_eq!(Plan::new(&evicted).attachment_pod, PodAction::Delete);
}
