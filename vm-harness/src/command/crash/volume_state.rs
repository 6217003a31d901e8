//! The state of a volume, as `ecr-runtime block-volume list` reports it.

use std::fmt;

/// The state of a volume; `Gone` if it is not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum VolumeState {
    Gone,
    Incomplete,
    Attached,
    Stale,
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "gone",
            Self::Incomplete => "incomplete",
            Self::Attached => "attached",
            Self::Stale => "stale",
        })
    }
}
