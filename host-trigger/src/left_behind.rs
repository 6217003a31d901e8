//! What the guest left of an attachment in a container, because it could not be removed there: the
//! container decides what its file system answers. The volume is detached all the same. Reasons may
//! quote what the container chose, so they are escaped.

use std::fmt;

use block_volume_api::block_volume::LeftBehind as Reply;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sanitize::sanitize;

/// The maximum number that is taken from one reply.
const MAX_PARTS: usize = 256;

/// A part of an attachment that stays in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeftBehind {
    /// The device path in the container.
    pub path: String,
    /// Which part stays, and why it could not be removed.
    pub reason: String,
}

impl LeftBehind {
    /// Converts the parts of a reply.
    pub(crate) fn from_reply(reply: &[Reply]) -> Vec<Self> {
        let one =
            |left: &Reply| Self { path: sanitize(&left.path), reason: sanitize(&left.reason) };
        reply.iter().take(MAX_PARTS).map(one).collect()
    }
}

impl fmt::Display for LeftBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, reason } = self;
        write!(f, "warning: left behind in the container at {path}: {reason}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_container_are_escaped_and_a_reply_is_bounded() {
        let one = Reply {
            serial: "s".into(),
            path: "/dev/a\n".into(),
            reason: "its device node: \u{1b}[2J".into(),
            ..Default::default()
        };
        let left = LeftBehind::from_reply(&vec![one; 300]);
        assert_eq!(left.len(), 256);
        let line = left[0].to_string();
        assert_eq!(
            line,
            "warning: left behind in the container at /dev/a\\n: its device node: \\u{1b}[2J"
        );
    }
}
