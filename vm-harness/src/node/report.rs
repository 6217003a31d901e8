//! What the suite in a node reports: lines of JSON.

use serde::{Deserialize, Serialize};

/// The name of the port of the virtio console, in `/dev/virtio-ports`.
pub(super) const PORT: &str = "ecr.report";

/// Something that happened in the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A scenario begins.
    Begun {
        /// What it proves.
        scenario: String,
    },
    /// It has not ended yet. Reported every minute.
    Running {
        /// What it proves.
        scenario: String,
        /// For how long it has been running.
        milliseconds: u64,
        /// The lines of the node's journal since the last report of this kind, at most a few.
        journal: String,
    },
    /// It has passed.
    Passed {
        /// What it proves.
        scenario: String,
        /// How long it took.
        milliseconds: u64,
    },
    /// It has failed. None follows.
    Failed {
        /// What it was to prove.
        scenario: String,
        /// Why, and where in the source.
        message: String,
        /// The last lines of the node's journal.
        journal: String,
    },
    /// The suite has ended.
    Ended,
}
