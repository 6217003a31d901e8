//! The device node of an attachment: made, or found where the container has it already.

use std::{os::fd::OwnedFd, time::Instant};

use super::{
    attachment::{AccessMode, Attachment, Way},
    failed::{Failed, OfVolume as _},
    job::AttachJob,
    progress::VolumeProgress,
};
use crate::{
    block::BlockDevice,
    device_node::{self, Device, Draft, Existing, Location, NodeKind},
    error::{BoxedError, Conflict, Error, Mismatch, Result},
    fault,
    text::displayed,
};

/// Makes what nodes that are mounted need, together for all volumes whose path is free.
///
/// # Errors
/// The first volume whose node cannot be made, and why.
pub(super) fn private_nodes(
    jobs: &[AttachJob],
    locations: &[Location],
    devices: &[Option<Device>],
    deadline: Instant,
) -> Result<Vec<Option<OwnedFd>>, Failed> {
    let (mut drafts, mut indexes) = (Vec::with_capacity(jobs.len()), Vec::new());
    for (index, (job, (location, device))) in
        jobs.iter().zip(locations.iter().zip(devices)).enumerate()
    {
        let AttachJob { attachment, target } = job;
        if let Some(device) = *device
            && location.existing().of(&attachment.serial)?.is_none()
        {
            indexes.push(index);
            drafts.push(Draft { location, target, id: &attachment.serial, device });
        }
    }
    let mut all: Vec<Option<OwnedFd>> = Vec::new();
    all.resize_with(jobs.len(), || None);
    match device_node::private_nodes(&drafts, deadline) {
        Ok(made) => {
            for (index, made) in indexes.into_iter().zip(made) {
                all[index] = made;
            }
            Ok(all)
        }
        Err((index, error)) => Err(error).of(drafts[index].id),
    }
}

/// The device of a volume's node; `None` for a mount.
pub(super) fn device(
    attachment: &Attachment,
    disk: &BlockDevice,
    volume: &VolumeProgress,
    guarded: bool,
) -> Option<Device> {
    attachment.mount.is_none().then(|| Device {
        number: disk.number,
        options: volume.options.unwrap_or(attachment.options),
        read_only: attachment.access == AccessMode::ReadOnly,
        guarded,
    })
}

/// Makes the node, which is not published yet.
pub(super) fn make(
    AttachJob { attachment, target }: &AttachJob,
    disk: &BlockDevice,
    location: Location,
    volume: &mut VolumeProgress,
    (device, private): (Device, Option<OwnedFd>),
) -> Result<()> {
    let requested = device.options;
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
            let node = location.make_of(target, &attachment.serial, device, private)?;
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
