//! Conditions ([API conventions](https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md#typical-status-properties)):
//! what is true of an attachment, since when, and why.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest message. What the guest says is bounded elsewhere; this bounds what is stored.
const MAX_MESSAGE: usize = 2048;

/// The conditions of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionType {
    /// The controller has given the attachment to a node.
    Accepted,
    /// The volume is on that node.
    SourceReady,
    /// The container has the volume.
    Attached,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// That cannot be told.
    Unknown,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Which one.
    #[serde(rename = "type")]
    pub condition_type: ConditionType,
    /// Whether it holds.
    pub status: Truth,
    /// Why, for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// The generation of the attachment that this is about.
    pub observed_generation: i64,
    /// Since when it holds, or does not.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub last_transition_time: Time,
}

impl Condition {
    /// A condition from now on.
    pub fn new(
        condition_type: ConditionType,
        status: Truth,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            condition_type,
            status,
            reason: reason.into(),
            message: bounded(message.into(), MAX_MESSAGE),
            observed_generation: 0,
            last_transition_time: Time(now()),
        }
    }

    /// The same, about `generation`, and since when it was the same in `former`.
    #[must_use]
    pub fn since(mut self, former: Option<&Self>, generation: Option<i64>) -> Self {
        self.observed_generation = generation.unwrap_or(0);
        if let Some(former) = former
            && former.status == self.status
        {
            self.last_transition_time = former.last_transition_time.clone();
        }
        self
    }
}

/// Cuts `text` at a character so that it has at most `max` bytes.
pub(crate) fn bounded(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

/// In whole seconds, as the API server stores it.
fn now() -> Timestamp {
    let seconds = Timestamp::now().as_second();
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_the_last_change() {
        let mut former = Condition::new(ConditionType::Attached, Truth::False, "Busy", "a");
        former.last_transition_time = Time(Timestamp::UNIX_EPOCH);
        let again = Condition::new(ConditionType::Attached, Truth::False, "Detached", "b");
        let again = again.since(Some(&former), Some(3));
        assert_eq!(again.last_transition_time, former.last_transition_time);
        assert_eq!(again.observed_generation, 3);
        let other = Condition::new(ConditionType::Attached, Truth::True, "Attached", "");
        let other = other.since(Some(&former), Some(3));
        assert_ne!(other.last_transition_time, former.last_transition_time);
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let condition =
            Condition::new(ConditionType::Attached, Truth::False, "Busy", "\u{e4}".repeat(2000));
        assert_eq!(condition.message.len(), MAX_MESSAGE);
    }
}
