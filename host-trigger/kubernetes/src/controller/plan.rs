//! What the controller does about an attachment: decided from what was read, without any access.
//!
//! An attachment is *given* to a node and to one pod there, by its UID, and stays given until the
//! node agent has said that nothing is attached any more, or the node is gone. Only then can it be
//! given to another pod of the same name, and only then is its attachment pod removed.

use kube::ResourceExt as _;

use super::{
    observed::{self, Observed},
    pod::Pod,
    refusal::{self, Refusal},
};
use crate::resource::{
    BlockVolumeAttachment, Condition, ConditionType, ControllerStatus, FINALIZER, NODE_LABEL,
    POD_UID_ANNOTATION, Truth,
};

/// The reason of `SourceReady` when the attachment pod cannot be made.
const POD_REFUSED: &str = "AttachmentPodRefused";

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

impl Plan {
    /// Decides.
    pub(super) fn new(observed: &Observed) -> Self {
        let given = observed::is_given(&observed.attachment);
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

    /// Whether there is nothing to do: all is as planned.
    pub(super) fn is_done(&self, observed: &Observed) -> bool {
        !self.speaks_for_node
            && self.attachment_pod == PodAction::Keep
            && self.has_metadata(&observed.attachment)
            && self.has_status(observed)
    }

    /// The UID of the pod that the attachment is given to.
    pub(super) fn pod_uid(&self) -> Option<&String> {
        self.status.as_ref()?.0.pod_uid.as_ref()
    }

    /// Whether the attachment has the finalizer, the label and the annotation as planned.
    pub(super) fn has_metadata(&self, attachment: &BlockVolumeAttachment) -> bool {
        attachment.finalizers().iter().any(|one| one == FINALIZER) == self.finalizer
            && attachment.labels().get(NODE_LABEL) == self.node.as_ref()
            && attachment.annotations().get(POD_UID_ANNOTATION) == self.pod_uid()
    }

    /// Whether the status is as planned. One that was restored is not: it is written again.
    fn has_status(&self, observed: &Observed) -> bool {
        let Some((status, conditions)) = &self.status else { return true };
        !observed.is_restored && is_status(&observed.attachment, status, conditions)
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
            container_id: pod.running_container(&observed.attachment.spec.container_name),
            ..assignment(observed, pod)
        };
        let attachment_pod = match (observed.claim_name(), observed.own_pod()) {
            (Some(claim), None) if observed.attachment_pod.is_none() => {
                PodAction::Create { node: node.clone(), claim: claim.to_owned() }
            }
            // One that was evicted does not run again.
            (_, Some(own)) if own.has_ended() => remove(observed),
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
        match refusal::acceptable(observed) {
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

/// Whether the controller's part of the attachment's status is this one.
pub(super) fn is_status(
    attachment: &BlockVolumeAttachment,
    status: &ControllerStatus,
    conditions: &[Condition],
) -> bool {
    let known = |one: &Condition| attachment.condition(one.condition_type) == Some(one);
    attachment.assignment() == *status && conditions.iter().all(known)
}

fn assignment(observed: &Observed, pod: &Pod) -> ControllerStatus {
    let capacity = observed.claim.as_ref().and_then(|claim| claim.status.capacity.storage.clone());
    ControllerStatus {
        node_name: pod.node().map(str::to_owned),
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

fn pod_gone(observed: &Observed) -> Condition {
    let name = &observed.attachment.spec.pod_name;
    let message = match &observed.pod {
        Some(pod) if pod.has_ended() => format!("pod {name} has ended"),
        Some(_) => format!("pod {name} was replaced by another one of its name"),
        None => format!("pod {name} is gone"),
    };
    let message = format!("{message}; its node detaches the volume, the next pod gets it");
    accepted(Truth::False, "PodGone", message)
}

fn node_gone(observed: &Observed) -> Condition {
    let node = observed.attachment.assignment().node_name.unwrap_or_default();
    let message = format!(
        "node {node} is not a part of the cluster any more; the volume counts as detached from it"
    );
    accepted(Truth::False, "NodeGone", message)
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
            "the attachment is not accepted: see the condition Accepted",
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
        // Until it can be made, the reason why not is worth more.
        let former = observed.attachment.condition(ConditionType::SourceReady);
        if let Some(refused) = former.filter(|one| one.reason == POD_REFUSED) {
            return refused.clone();
        }
        let message = "the attachment pod is not there yet".to_owned();
        return condition(Truth::False, "AttachmentPodMissing", message);
    };
    let name = pod.name_any();
    match pod.phase() {
        "Running" if pod.metadata.deletion_timestamp.is_none() => {
            condition(Truth::True, "AttachmentPodRuns", format!("attachment pod {name} runs"))
        }
        "Running" => {
            let message =
                format!("attachment pod {name} is being deleted; it is made again when it is gone");
            condition(Truth::False, "AttachmentPodDeleted", message)
        }
        phase => {
            let why = pod.why_pending().map(|why| format!(": {why}")).unwrap_or_default();
            let message = format!(
                "attachment pod {name} does not run: it is {phase}{why}; kubectl describe pod \
                 {name} says more"
            );
            condition(Truth::False, "AttachmentPodPending", message)
        }
    }
}

/// The condition of an attachment whose pod the API server refuses to make.
pub(super) fn pod_is_refused(
    attachment: &BlockVolumeAttachment,
    pod: &str,
    why: &str,
) -> Condition {
    let message = format!(
        "attachment pod {pod} cannot be made: {why}; it is tried again, see quotas, limit ranges \
         and admission rules of this namespace"
    );
    let condition = Condition::new(ConditionType::SourceReady, Truth::False, POD_REFUSED, message);
    let former = attachment.condition(ConditionType::SourceReady);
    condition.since(former, attachment.metadata.generation)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
