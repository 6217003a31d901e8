//! The size of a volume, as QEMU and as the guest have it.

use std::path::Path;

use block_volume_api::block_volume::Detachment;
use block_volume_qmp::Qmp;
use serde_json::json;

use super::inspect::{self, Details};
use crate::{
    Deadline, Error, guest_holder::GuestHolder, kata::agent::Agent, qemu::inventory::Inventory,
    sanitize::sanitize, volume_id::VolumeId,
};

/// Reads the size in QEMU.
///
/// # Errors
/// QEMU does not reply, or has no block node of the volume.
pub(crate) async fn in_qemu(qmp: &mut Qmp, id: &VolumeId) -> Result<u64, Error> {
    let mut inventory = Inventory::read(qmp).await?;
    inventory.read_nodes(qmp).await?;
    let incomplete = || Error::IncompleteVolume { volume: id.to_string() };
    inventory.volume(id).node.ok_or_else(incomplete)
}

/// Resizes the volume in QEMU; `path` is the source's.
///
/// # Errors
/// The file system of an image does not take the size, QEMU refuses, or it does not reply.
pub(crate) async fn set_in_qemu(
    qmp: &mut Qmp,
    id: &VolumeId,
    path: &Path,
    size: u64,
) -> Result<(), Error> {
    match qmp.execute("block_resize", json!({"node-name": id.node(), "size": size})).await {
        // The file system of the image has a limit, or no space for the metadata of a longer file.
        Err(e)
            if e.refusal()
                .is_some_and(|text| text.contains("too large") || text.contains("No space")) =>
        {
            Err(Error::ImageLimit { path: path.to_owned(), size, source: e })
        }
        resized => Ok(resized.map(drop)?),
    }
}

/// A volume's disk in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GuestDisk {
    pub(crate) size: u64,
    /// SCSI commands that failed since the volume was attached.
    pub(crate) errors: u64,
}

/// Reads the size in the guest; `None` if the guest has no such disk.
///
/// # Errors
/// The guest refuses, cannot tell, or does not reply.
pub(crate) async fn in_guest(
    agent: &Agent,
    attachment: &Detachment,
    deadline: Deadline,
) -> Result<Option<GuestDisk>, Error> {
    let seen = inspect::inspect(agent, attachment, Details::Stats, deadline).await?;
    let errors = seen.stats.as_ref().map(|stats| stats.errors).unwrap_or_default();
    match inspect::untold(&seen) {
        // What the container has of it does not matter here.
        _ if seen.disk_present => Ok(Some(GuestDisk { size: seen.size, errors })),
        Some((_, error)) => Err(error),
        None => Ok(None),
    }
}

/// Checks that nothing in the guest relies on the part of the disk beyond `size`: no mount, mapping
/// or swap. A process that has the disk open gets errors there, and can handle them.
///
/// # Errors
/// Something does, or the guest cannot tell.
pub(crate) async fn check_unused(
    agent: &Agent,
    attachment: &Detachment,
    size: u64,
    deadline: Deadline,
) -> Result<(), Error> {
    let mut seen = inspect::inspect(agent, attachment, Details::Holders, deadline).await?;
    // First: so many processes do not hide a mount.
    seen.holders.retain(|holder| holder.kind != "process");
    let holders = GuestHolder::from_reply(&seen.holders);
    match holders.is_empty() {
        true => Ok(()),
        false => Err(Error::ShrinkInUse { volume: sanitize(&seen.serial), asked: size, holders }),
    }
}
