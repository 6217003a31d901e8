//! What the controller does about an attachment: decided from what was read, without any access.
//!
//! An attachment is *given* to a node and to one pod there, by its UID, and stays given until the
//! node agent has said that nothing is attached any more, or the node is gone. Only then can it be
//! given to another pod of the same name, and only then is its attachment pod removed.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::observed::{self, Observed};
use crate::resource::{Condition, ConditionType, ControllerStatus, FINALIZER, Truth};

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// Whether the attachment has the finalizer.
    pub(super) finalizer: bool,
    /// The node of the label.
    pub(super) node: Option<String>,
    /// What becomes of the attachment pod.
    pub(super) attachment_pod: PodAction,
    /// The controller's part of the status; `None` if the attachment is about to go.
    pub(super) status: Option<(ControllerStatus, Vec<Condition>)>,
    /// Whether the node is gone, so that the controller says for it that nothing is attached.
    pub(super) speaks_for_node: bool,
}

/// What becomes of the attachment pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PodAction {
    /// It stays as it is, or is not there.
    Keep,
    /// It is made on this node for this claim.
    Create { node: String, claim: String },
    /// It is removed.
    Delete,
}

/// Why an attachment is not given to a node: a reason for programs, and for people.
struct Refusal(&'static str, String);

impl Plan {
    /// Decides.
    pub(super) fn new(observed: &Observed) -> Self {
        let given = observed.attachment.assignment().pod_uid.is_some();
        let is_free = !given || observed.attachment.is_released();
        if given && !is_free && !observed.node_exists {
            return Self { speaks_for_node: true, ..Self::keep(observed, node_gone(observed)) };
        }
        if observed.attachment.metadata.deletion_timestamp.is_some() {
            return match is_free {
                true => Self::let_go(observed),
                false => Self::keep(observed, Self::deleted(observed)),
            };
        }
        match (given, observed.assigned_pod()) {
            (true, Some(pod)) => Self::serve(observed, pod),
            (true, None) if !is_free => Self::keep(observed, pod_gone(observed)),
            (true | false, _) => Self::give(observed),
        }
    }

    /// The attachment may go.
    fn let_go(observed: &Observed) -> Self {
        Self {
            finalizer: false,
            node: None,
            attachment_pod: remove(observed),
            status: None,
            speaks_for_node: false,
        }
    }

    /// The attachment stays given; its condition `Accepted` is `accepted`.
    fn keep(observed: &Observed, accepted: Condition) -> Self {
        let assignment = observed.attachment.assignment();
        Self {
            finalizer: true,
            node: assignment.node_name.clone(),
            attachment_pod: PodAction::Keep,
            status: Some((assignment, conditions(observed, accepted))),
            speaks_for_node: false,
        }
    }

    fn deleted(observed: &Observed) -> Condition {
        let node = observed.attachment.assignment().node_name.unwrap_or_default();
        let message = format!("the attachment is deleted: node {node} detaches the volume");
        accepted(Truth::False, "Deleted", message)
    }

    /// The attachment is given to `pod`, which is there.
    fn serve(observed: &Observed, pod: &Pod) -> Self {
        let node = observed.attachment.assignment().node_name.unwrap_or_default();
        let status = ControllerStatus {
            container_id: observed::running_container(
                pod,
                &observed.attachment.spec.container_name,
            ),
            ..assignment(observed, pod)
        };
        let attachment_pod = match (observed.claim_name(), observed.own_pod()) {
            (Some(claim), None) if observed.attachment_pod.is_none() => {
                PodAction::Create { node: node.clone(), claim: claim.to_owned() }
            }
            // One that was evicted does not run again.
            (_, Some(own)) if observed::has_ended(own) => remove(observed),
            _ => PodAction::Keep,
        };
        let message = format!("the pod runs on node {node}");
        let accepted = accepted(Truth::True, "Given", message);
        Self {
            finalizer: true,
            node: Some(node),
            attachment_pod,
            status: Some((status, conditions(observed, accepted))),
            speaks_for_node: false,
        }
    }

    /// The attachment is given to the node of its pod, or there is a reason why not.
    fn give(observed: &Observed) -> Self {
        match acceptable(observed) {
            Ok(pod) => {
                let mut given = observed.clone();
                let status = given.attachment.status.get_or_insert_default();
                status.controller = assignment(observed, pod);
                Self::serve(&given, pod)
            }
            Err(Refusal(reason, message)) => {
                let accepted = accepted(Truth::False, reason, message);
                let has_finalizer = observed.attachment.finalizers().iter().any(|f| f == FINALIZER);
                Self {
                    // It was given before, and may be again: nothing is lost by keeping it, and an
                    // attachment that was never given goes without being asked.
                    finalizer: has_finalizer,
                    node: None,
                    attachment_pod: remove(observed),
                    status: Some((ControllerStatus::default(), conditions(observed, accepted))),
                    speaks_for_node: false,
                }
            }
        }
    }
}

fn assignment(observed: &Observed, pod: &Pod) -> ControllerStatus {
    let capacity = observed.claim.as_ref().and_then(|claim| {
        claim.status.as_ref()?.capacity.as_ref()?.get("storage").map(|size| size.0.clone())
    });
    ControllerStatus {
        node_name: observed::node(pod).map(str::to_owned),
        pod_uid: pod.metadata.uid.clone(),
        container_id: None,
        claim_capacity: capacity,
    }
}

fn remove(observed: &Observed) -> PodAction {
    match observed.own_pod() {
        Some(pod) if pod.metadata.deletion_timestamp.is_none() => PodAction::Delete,
        _ => PodAction::Keep,
    }
}

/// The pod, if the attachment can be given to its node.
fn acceptable(observed: &Observed) -> Result<&Pod, Refusal> {
    let spec = &observed.attachment.spec;
    let name = &spec.pod_name;
    if let Some(own) = observed.own_pod() {
        let message = format!("attachment pod {} of an earlier pod is removed", own.name_any());
        return Err(Refusal("AttachmentPodTerminating", message));
    }
    let Some(pod) = &observed.pod else {
        return Err(Refusal("PodNotFound", format!("there is no pod {name} in this namespace")));
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(Refusal("PodNotRunning", format!("pod {name} is being deleted")));
    }
    let (Some(node), "Running") = (observed::node(pod), observed::phase(pod)) else {
        let message = format!("pod {name} does not run: its phase is {}", observed::phase(pod));
        return Err(Refusal("PodNotRunning", message));
    };
    if !observed::has_container(pod, &spec.container_name) {
        let message = format!("pod {name} has no container {}", spec.container_name);
        return Err(Refusal("ContainerNotFound", message));
    }
    if let Some(rival) = observed.rival() {
        let message = format!("attachment {rival} has {} in this container", spec.device_path);
        return Err(Refusal("DevicePathTaken", message));
    }
    if observed.attachment_pod.is_some() {
        let message = "a pod that is not its own has the name of the attachment pod".to_owned();
        return Err(Refusal("AttachmentPodNameTaken", message));
    }
    claim_fits(observed, node)?;
    Ok(pod)
}

fn claim_fits(observed: &Observed, node: &str) -> Result<(), Refusal> {
    let Some(name) = observed.claim_name() else { return Ok(()) };
    let Some(claim) = &observed.claim else {
        let message = format!("there is no claim {name} in this namespace");
        return Err(Refusal("ClaimNotFound", message));
    };
    let spec = claim.spec.as_ref();
    if spec.and_then(|spec| spec.volume_mode.as_deref()) != Some("Block") {
        let message = format!("claim {name} is a file system: its volumeMode has to be Block");
        return Err(Refusal("ClaimNotBlock", message));
    }
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
        return Err(Refusal("ClaimLost", format!("claim {name} has lost its volume")));
    }
    let modes: Vec<_> = spec.and_then(|spec| spec.access_modes.clone()).unwrap_or_default();
    if modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany") {
        return Ok(());
    }
    let elsewhere = observed.claim_users.iter().find(|user| {
        !observed::has_ended(user) && observed::node(user).is_some_and(|other| other != node)
    });
    match elsewhere {
        Some(user) => {
            let (pod, other) = (user.name_any(), observed::node(user).unwrap_or_default());
            let message = format!(
                "claim {name} is in use by pod {pod} on node {other}, and its access modes allow \
                 one node alone"
            );
            Err(Refusal("ClaimOnOtherNode", message))
        }
        None => Ok(()),
    }
}

fn pod_gone(observed: &Observed) -> Condition {
    let name = &observed.attachment.spec.pod_name;
    let message = match &observed.pod {
        Some(pod) if observed::has_ended(pod) => format!("pod {name} has ended"),
        Some(_) => format!("pod {name} was replaced by another one of its name"),
        None => format!("pod {name} is gone"),
    };
    accepted(Truth::False, "PodGone", message)
}

fn node_gone(observed: &Observed) -> Condition {
    let node = observed.attachment.assignment().node_name.unwrap_or_default();
    accepted(Truth::False, "NodeGone", format!("node {node} is not a part of the cluster any more"))
}

fn accepted(status: Truth, reason: &str, message: String) -> Condition {
    Condition::new(ConditionType::Accepted, status, reason, message)
}

/// The conditions of the controller.
fn conditions(observed: &Observed, accepted: Condition) -> Vec<Condition> {
    let ready = match accepted.status {
        Truth::True => source_ready(observed),
        Truth::False | Truth::Unknown => Condition::new(
            ConditionType::SourceReady,
            Truth::Unknown,
            accepted.reason.clone(),
            "the attachment is not accepted",
        ),
    };
    let attachment = &observed.attachment;
    [accepted, ready]
        .map(|condition| {
            let former = attachment.condition(condition.condition_type);
            condition.since(former, attachment.metadata.generation)
        })
        .into()
}

fn source_ready(observed: &Observed) -> Condition {
    let condition = |status, reason, message: String| {
        Condition::new(ConditionType::SourceReady, status, reason, message)
    };
    if observed.claim_name().is_none() {
        let message = "the node agent checks the path".to_owned();
        return condition(Truth::True, "HostPath", message);
    }
    let Some(pod) = observed.own_pod() else {
        let message = "the attachment pod is not there yet".to_owned();
        return condition(Truth::False, "AttachmentPodMissing", message);
    };
    let name = pod.name_any();
    match observed::phase(pod) {
        "Running" if pod.metadata.deletion_timestamp.is_none() => {
            condition(Truth::True, "AttachmentPodRuns", format!("attachment pod {name} runs"))
        }
        "Running" => {
            let message = format!("attachment pod {name} is being deleted");
            condition(Truth::False, "AttachmentPodDeleted", message)
        }
        phase => {
            let why = observed::why_pending(pod).map(|why| format!(": {why}")).unwrap_or_default();
            let message = format!("attachment pod {name} does not run: it is {phase}{why}");
            condition(Truth::False, "AttachmentPodPending", message)
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
