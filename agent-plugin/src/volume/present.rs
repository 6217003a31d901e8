//! What exists of a volume that is detached, and what a detach has removed of it.

use std::sync::Arc;

use super::{disk_removal::Quiesced, job::DetachJob};
use crate::{
    block::{BlockDevice, Claim},
    cgroup::Access,
    device_node::{self, Location, NodeOptions},
    error::Error,
    scsi::ScsiDevice,
};

/// What exists of one volume.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) serial: String,
    /// The SCSI device with our serial; it may have no name yet.
    pub(super) device: Option<ScsiDevice>,
    pub(super) disk: Option<BlockDevice>,
    pub(super) location: Option<Arc<Location>>,
    pub(super) claim: Option<Claim>,
    /// The node that was removed.
    pub(super) removed: Option<NodeOptions>,
    /// The mount was removed, or may be.
    pub(super) unmounted: bool,
    /// The file system was shut down: it writes nothing any more.
    pub(super) shut_down: bool,
    /// The access that was revoked.
    pub(super) revoked: Access,
    pub(super) quiesced: Option<Quiesced>,
    /// The disk is deleted, or its deletion has begun, or the caller was told that it is released.
    pub(super) deleted: bool,
    /// A leftover of an earlier run was removed. A rollback does not restore it.
    pub(super) cleared: bool,
    /// The container did not answer during the removal: the node may be removed.
    pub(super) uncertain: bool,
    /// What could not be removed in the container. The detach goes on.
    pub(super) left: Vec<LeftBehind>,
}

impl Present {
    /// Whether the detach has changed anything.
    pub(super) fn changed(&self) -> bool {
        self.removed.is_some()
            || self.unmounted
            || !self.revoked.is_empty()
            || self.deleted
            || self.cleared
    }

    /// Notes what the removal of the node left behind.
    pub(super) fn leave_all(&mut self, left: Vec<device_node::LeftBehind>) {
        let serial = &self.serial;
        self.left.extend(left.into_iter().map(|device_node::LeftBehind { path, reason }| {
            LeftBehind { serial: serial.clone(), path, reason }
        }));
    }

    /// Notes a part that stays in the container of `job`, at the attachment's path.
    pub(super) fn leave(&mut self, job: &DetachJob, part: &str, error: &Error) {
        self.left.push(LeftBehind {
            serial: self.serial.clone(),
            path: job.attachment.path.as_str().to_owned(),
            reason: format!("its {part}: {}", error.message()),
        });
    }
}

/// A part of an attachment that stays in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LeftBehind {
    pub(crate) serial: String,
    /// In the container: of the attachment, or where the part is now.
    pub(crate) path: String,
    /// What, and why.
    pub(crate) reason: String,
}
