//! What exists of a volume that is detached, and what a detach has removed of it.

use crate::{
    block::{BlockDevice, Claim},
    cgroup::Access,
    device_node::{LeftBehind, Location, NodeOptions},
    scsi::ScsiDevice,
};

/// What exists of one volume.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) serial: String,
    /// The SCSI device with our serial; it may have no name yet.
    pub(super) device: Option<ScsiDevice>,
    pub(super) disk: Option<BlockDevice>,
    pub(super) location: Option<Location>,
    pub(super) claim: Option<Claim>,
    /// What of the node could not be removed.
    pub(super) left: Vec<LeftBehind>,
    /// The node that was removed.
    pub(super) removed: Option<NodeOptions>,
    /// The access that was revoked.
    pub(super) revoked: Access,
    /// The disk is deleted.
    pub(super) deleted: bool,
    /// A leftover of an earlier run was removed. A rollback does not restore it.
    pub(super) cleared: bool,
}

impl Present {
    /// Whether the detach has changed anything.
    pub(super) fn changed(&self) -> bool {
        self.removed.is_some() || !self.revoked.is_empty() || self.deleted || self.cleared
    }
}
