//! What is done after a disturbance.

use super::fault_point::Verb;

/// A command that completes or reverts a disturbed run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The same command again.
    Again,
    /// `repair`.
    Repair,
    /// `hot-unplug`.
    Unplug,
    /// No remedy is needed.
    None,
}

impl Remedy {
    /// Returns the name of the command, after a disturbed `verb`.
    pub(super) fn name(self, verb: Verb) -> &'static str {
        match self {
            Self::Again => verb.name(),
            Self::Repair => "repair",
            Self::Unplug => "hot-unplug",
            Self::None => "–",
        }
    }
}
