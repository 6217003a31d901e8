//! The device node of an attachment: made, or found where the container has it already.

use std::time::Instant;

use super::{
    attachment::{AccessMode, Attachment, Way},
    job::AttachJob,
    progress::VolumeProgress,
};
use crate::{
    block::BlockDevice,
    device_node::{Device, Existing, Location, NodeKind},
    error::{BoxedError, Conflict, Error, Mismatch, Result},
    fault,
    text::displayed,
};

/// Makes the node, which is not published yet.
pub(super) fn make(
    AttachJob { attachment, target }: &AttachJob,
    disk: &BlockDevice,
    location: Location,
    volume: &mut VolumeProgress,
    guarded: bool,
    deadline: Instant,
) -> Result<()> {
    let requested = volume.options.unwrap_or(attachment.options);
    let path = || attachment.path.as_str().to_owned();
    let access = access_of(volume);
    match location.existing()? {
        Some(Existing::Block(number, options)) if number == disk.number => {
            let kind = location.find_node()?.map_or(NodeKind::Mknod, |(_, kind)| kind);
            (volume.was_there, volume.way) = (true, Some(Way::Node(kind)));
            let conflict = |existing: String, requested: String| {
                Err(Conflict { path: path(), existing, requested }.into())
            };
            if options != requested {
                return conflict(displayed(&options), displayed(&requested));
            }
            if access != attachment.access {
                return conflict(
                    format!("{access} access"),
                    format!("{} access", attachment.access),
                );
            }
            location.remove_leftover(&attachment.serial).map(drop)
        }
        Some(other) => Err(taken(attachment, &other)),
        None => {
            check_access(attachment, disk, volume)?;
            if fault::skips("node") {
                return Ok(());
            }
            let read_only = attachment.access == AccessMode::ReadOnly;
            let device = Device { number: disk.number, options: requested, read_only, guarded };
            let node = location.make(target, &attachment.serial, device, deadline)?;
            volume.way = Some(Way::Node(node.kind()));
            volume.node = Some(node);
            Ok(())
        }
    }
}

/// The access that the disk itself allows.
pub(super) fn access_of(volume: &VolumeProgress) -> AccessMode {
    if volume.read_only { AccessMode::ReadOnly } else { AccessMode::ReadWrite }
}

/// Checks that the disk allows exactly the access that is requested.
pub(super) fn check_access(
    attachment: &Attachment,
    disk: &BlockDevice,
    volume: &VolumeProgress,
) -> Result<()> {
    let access = access_of(volume);
    if access == attachment.access {
        return Ok(());
    }
    Err(Mismatch {
        device: displayed(&disk.device),
        what: "access",
        found: displayed(&access),
        expected: displayed(&attachment.access),
    }
    .into())
}

/// The error where something else is at the path.
pub(super) fn taken(attachment: &Attachment, by: &Existing) -> BoxedError {
    let (path, by) = (attachment.path.as_str().to_owned(), displayed(by));
    BoxedError::from(Error::PathTaken { path, by })
}
