//! How far an attachment is: its conditions in the order in which they come true, and what the
//! first one that does not hold waits for.

use kube::ResourceExt as _;

use crate::resource::{BlockVolumeAttachment, Condition, ConditionType, Truth};

/// The conditions in their order.
pub(super) const CHAIN: [ConditionType; 3] =
    [ConditionType::Accepted, ConditionType::SourceReady, ConditionType::Attached];

/// The reasons of an attachment that is not accepted and may be without any change of a person's.
const PASSES: [&str; 4] = ["PodNotRunning", "AttachmentPodTerminating", "PodGone", "NodeGone"];

/// How far an attachment is.
#[derive(Debug, PartialEq)]
pub(super) enum Progress<'a> {
    /// The container has the volume.
    Attached,
    /// This condition does not hold, and a person has to change something.
    Stuck(&'a Condition),
    /// This condition does not hold yet.
    Waits(&'a Condition),
    /// Nothing was said of this condition.
    Silent(ConditionType),
}

impl Progress<'_> {
    /// How far `attachment` is. What was said of an earlier generation is not about this one.
    pub(super) fn of(attachment: &BlockVolumeAttachment) -> Progress<'_> {
        for condition_type in CHAIN {
            let said = attachment.condition(condition_type);
            let current =
                said.filter(|one| Some(one.observed_generation) >= attachment.metadata.generation);
            match current {
                None => return Progress::Silent(condition_type),
                Some(one) if one.status == Truth::True => {}
                Some(one) => {
                    let is_refusal = condition_type == ConditionType::Accepted;
                    return match is_refusal && !PASSES.contains(&one.reason.as_str()) {
                        true => Progress::Stuck(one),
                        false => Progress::Waits(one),
                    };
                }
            }
        }
        Progress::Attached
    }

    /// The reason, in one word.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::Attached => "Attached",
            Self::Stuck(condition) | Self::Waits(condition) => &condition.reason,
            Self::Silent(_) => "NotReported",
        }
    }

    /// What it waits for, for people.
    pub(super) fn text(&self, attachment: &BlockVolumeAttachment) -> String {
        match self {
            Self::Attached => "the container has the volume".to_owned(),
            Self::Stuck(one) | Self::Waits(one) => {
                format!(
                    "{:?} is {:?}: {}: {}",
                    one.condition_type, one.status, one.reason, one.message
                )
            }
            Self::Silent(condition) => silence(*condition, attachment),
        }
    }
}

/// Who has not said anything, and where to look.
pub(super) fn silence(condition: ConditionType, attachment: &BlockVolumeAttachment) -> String {
    match (condition, attachment.assignment().node_name) {
        (ConditionType::Attached, Some(node)) => format!(
            "the node agent of {node} has not said anything yet; it runs on nodes with the label \
             katacontainers.io/kata-runtime=true: kubectl -n block-volume get pods -o wide -l \
             app.kubernetes.io/component=node --field-selector spec.nodeName={node}"
        ),
        _ => format!(
            "the controller has not said anything about {} yet; does it run? kubectl -n \
             block-volume get deployment block-volume-controller",
            attachment.name_any()
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::sample;

    fn with(conditions: &[(&str, &str, &str)]) -> BlockVolumeAttachment {
        let mut attachment = sample::attachment();
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(name, status, reason)| {
                json!({ "type": name, "status": status, "reason": reason, "message": "why; do this",
                    "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z" })
            })
            .collect();
        attachment.status =
            sample::object(json!({ "nodeName": "node-1", "conditions": conditions }));
        attachment
    }

    const GIVEN: (&str, &str, &str) = ("Accepted", "True", "Given");
    const READY: (&str, &str, &str) = ("SourceReady", "True", "HostPath");

    #[rstest]
    #[case(&[], "NotReported", false)]
    #[case(&[("Accepted", "False", "ClaimNotBlock")], "ClaimNotBlock", true)]
    #[case(&[("Accepted", "False", "PodNotRunning")], "PodNotRunning", false)]
    #[case(&[GIVEN, ("SourceReady", "False", "AttachmentPodPending")], "AttachmentPodPending",
        false)]
    #[case(&[GIVEN, READY], "NotReported", false)]
    #[case(&[GIVEN, READY, ("Attached", "False", "NotKata")], "NotKata", false)]
    #[case(&[GIVEN, READY, ("Attached", "True", "Attached")], "Attached", false)]
    fn the_first_condition_that_does_not_hold_says_what_is_waited_for(
        #[case] conditions: &[(&str, &str, &str)],
        #[case] reason: &str,
        #[case] is_stuck: bool,
    ) {
        let attachment = with(conditions);
        let progress = Progress::of(&attachment);
        assert_eq!(progress.reason(), reason);
        assert_eq!(matches!(progress, Progress::Stuck(_)), is_stuck);
    }

    #[test]
    fn what_was_said_of_an_earlier_generation_does_not_count() {
        let mut changed = with(&[GIVEN, READY, ("Attached", "True", "Attached")]);
        changed.metadata.generation = Some(2);
        assert_eq!(Progress::of(&changed), Progress::Silent(ConditionType::Accepted));
    }

    #[test]
    fn who_is_silent_is_named() {
        let attachment = with(&[GIVEN, READY]);
        let text = Progress::of(&attachment).text(&attachment);
        assert!(text.contains("node agent of node-1"), "{text}");
        let text = silence(ConditionType::Accepted, &attachment);
        assert!(text.contains("block-volume-controller"), "{text}");
    }
}
