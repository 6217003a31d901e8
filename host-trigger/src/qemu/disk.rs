//! The disks of volumes: `scsi-hd` on a virtio-scsi controller
//! ([`device_add`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-qdev.device_add)).
//! `block_node` has what is below them.

use block_volume_qmp::{Command, Qmp, QmpError};
use serde_json::{Value, json};

use super::{disk_options, throttle::Limits};
use crate::{Error, disk_geometry::DiskGeometry, fault, volume_id::VolumeId};

/// What the descriptor leads to, as far as QEMU's options depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// A block device, opened with `O_DIRECT`.
    HostDevice(DiskGeometry),
    /// A raw image, and whether the disk that it is on rotates, or is not known.
    File { rotational: bool },
}

/// The address of a disk on its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ScsiAddress {
    pub(crate) target: u32,
    pub(crate) lun: u32,
}

/// Targets that Kata, which counts from 0 upwards, does not reach.
pub(crate) const TARGETS: std::ops::RangeInclusive<u32> = 192..=255;
/// LUN 0 stands for its whole target in some events, and a guest sees LUNs above 255 twice.
const LUNS: u32 = 255;
/// The number of addresses that are used on one controller.
pub(crate) const ADDRESSES: u32 = LUNS * (*TARGETS.end() - *TARGETS.start() + 1);

/// Candidate addresses: each once, starting at a random one, so that one is not reused immediately.
#[derive(Debug)]
pub(crate) struct Addresses {
    next: u32,
    left: u32,
}

impl Addresses {
    pub(crate) fn shuffled() -> Self {
        let first = fault::value("first-address").and_then(|first| first.parse().ok());
        Self { next: first.unwrap_or_else(|| fastrand::u32(..ADDRESSES)), left: ADDRESSES }
    }
}

impl Iterator for Addresses {
    type Item = ScsiAddress;

    fn next(&mut self) -> Option<ScsiAddress> {
        self.left = self.left.checked_sub(1)?;
        let (row, column) = (self.next / LUNS, self.next % LUNS);
        self.next = (self.next + 1) % ADDRESSES;
        Some(ScsiAddress { target: TARGETS.end() - row, lun: 1 + column })
    }
}

/// Takes "not found" for success: what is gone need not be removed.
pub(crate) fn unless_gone(reply: Result<Value, QmpError>) -> Result<(), QmpError> {
    match reply {
        Err(e) if e.refusal().is_some_and(is_gone) => Ok(()),
        reply => reply.map(drop),
    }
}

/// Whether QEMU refused because the object does not exist.
pub(crate) fn is_gone(refusal: &str) -> bool {
    refusal.contains("not found") || refusal.contains("Failed to find node")
}

/// A disk that is to be added, over a block node that exists.
#[derive(Debug)]
pub(crate) struct NewDisk<'a> {
    pub(crate) id: &'a VolumeId,
    pub(crate) backend: Backend,
    /// QEMU's ID of the controller.
    pub(crate) controller: &'a str,
    pub(crate) address: ScsiAddress,
    pub(crate) limits: Limits,
}

/// Adds all disks together, each at its address, and sets their limits: QEMU cannot add a device
/// with limits. Returns of each whether it was added, or else its address is taken, or why it was
/// refused.
///
/// # Errors
/// QEMU does not reply.
pub(crate) async fn add_all(
    qmp: &mut Qmp,
    disks: &[NewDisk<'_>],
) -> Result<Vec<Result<bool, Error>>, Error> {
    let commands: Vec<_> = disks.iter().flat_map(NewDisk::commands).collect();
    let mut replies = qmp.send_all(&commands).await;
    let mut all = Vec::with_capacity(disks.len());
    for disk in disks {
        let added = unless_lost(replies.read::<Value>())?;
        let limited = match disk.limits.is_unlimited() {
            true => Ok(()),
            false => unless_lost(replies.read::<Value>())?.map(drop),
        };
        let is_taken =
            |e: &QmpError| e.refusal().is_some_and(|text| text.contains("lun already used by"));
        all.push(match (added, limited) {
            (Ok(_), Ok(())) => Ok(true),
            (Ok(_), Err(e)) => Err(e.into()),
            (Err(e), _) if is_taken(&e) => Ok(false),
            (Err(e), _) => Err(refused(e, disk.id)),
        });
    }
    Ok(all)
}

impl NewDisk<'_> {
    fn commands(&self) -> Vec<Command<'static>> {
        let serial = fault::value("device-serial").unwrap_or_else(|| self.id.to_string());
        let mut device = json!({
            "driver": "scsi-hd", "id": self.id.device(), "drive": self.id.node(), "serial": serial,
            "bus": format!("{}.0", self.controller), "scsi-id": self.address.target,
            "lun": self.address.lun,
            // The default on ENOSPC stops the whole VM.
            "werror": "report", "rerror": "report",
        });
        match self.backend {
            Backend::HostDevice(geometry) => disk_options::add_geometry(&mut device, &geometry),
            Backend::File { rotational } => disk_options::add_rotation(&mut device, rotational),
        }
        let limits = (!self.limits.is_unlimited()).then(|| self.limits.command(self.id));
        [Command::new("device_add", device)].into_iter().chain(limits).collect()
    }
}

/// Separates the errors after which nothing more is known from those of a single command.
pub(super) fn unless_lost<T>(reply: Result<T, QmpError>) -> Result<Result<T, QmpError>, QmpError> {
    match reply {
        Err(e) if e.ends_connection() => Err(e),
        reply => Ok(reply),
    }
}

/// The meaning of QEMU's refusals.
pub(super) fn refused(error: QmpError, id: &VolumeId) -> Error {
    let text = error.refusal().unwrap_or_default();
    if text.contains("Duplicate node") || text.contains("Duplicate device") {
        return Error::ConcurrentRun { volume: id.to_string() };
    }
    error.into()
}

/// Whether QEMU refused because another QEMU, or this one through another node, has the file.
pub(crate) fn is_locked(error: &Error) -> bool {
    let Error::Qmp(error) = error else { return false };
    let text = error.refusal().unwrap_or_default();
    (text.contains("Failed to get") && text.contains("lock"))
        || text.contains("Permission conflict")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_address_is_tried_once_and_is_in_the_range() {
        let all: Vec<_> = Addresses::shuffled().collect();
        assert_eq!(all.len(), 64 * 255);
        assert!(all.iter().all(|a| TARGETS.contains(&a.target) && (1..=255).contains(&a.lun)));
        let distinct: HashSet<_> = all.iter().map(|a| (a.target, a.lun)).collect();
        assert_eq!(distinct.len(), all.len());
    }
}
