//! A volume as QEMU has it: a descriptor set, a block node over it
//! ([`blockdev-add`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block-core.blockdev-add))
//! and a `scsi-hd` on a virtio-scsi controller. Path reservations are block nodes, too.

use block_volume_qmp::{Qmp, QmpError};
use serde_json::{Value, json};

use super::disk_options;
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
        Self { next: fastrand::u32(..ADDRESSES), left: ADDRESSES }
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

/// Adds the block node of volume `id` over descriptor set `set`. The file node below it carries the
/// name `reservation`. Returns false, with nothing added, if that name is taken.
pub(crate) async fn add_node(
    qmp: &mut Qmp,
    id: &VolumeId,
    backend: Backend,
    read_only: bool,
    set: u64,
    reservation: Option<&str>,
) -> Result<bool, Error> {
    let (driver, direct) = match backend {
        Backend::HostDevice(_) => ("host_device", true),
        Backend::File { .. } => ("file", false),
    };
    // QEMU reads a command byte by byte, so defaults are left out.
    let mut common = json!({"discard": "unmap"});
    if read_only {
        common["read-only"] = json!(true);
    }
    if direct {
        common["cache"] = json!({"direct": true});
    }
    for aio in ["io_uring", "threads"] {
        let mut file = common.clone();
        file["driver"] = json!(driver);
        if let Some(reservation) = reservation {
            file["node-name"] = json!(reservation);
        }
        file["filename"] = json!(format!("/dev/fdset/{set}"));
        file["aio"] = json!(aio);
        let mut node = common.clone();
        node["driver"] = json!("raw");
        node["node-name"] = json!(id.node());
        node["file"] = file;
        match qmp.execute("blockdev-add", node).await {
            Ok(_) => return Ok(true),
            Err(e) if reservation.is_some_and(|name| is_duplicate_of(&e, name)) => {
                return Ok(false);
            }
            // Not built in, or forbidden by the kernel or by QEMU's sandbox.
            Err(e)
                if aio == "io_uring"
                    && e.refusal().is_some_and(|text| text.contains("io_uring")) => {}
            Err(e) => return Err(refused(e, id)),
        }
    }
    Err(QmpError::Answer { command: "blockdev-add".into() }.into())
}

/// Reserves the path of a further attachment, by a `null-co` node that is nothing but the name: the
/// disk's own node has the name of the first attachment. A node that has the name already reserves
/// the path as well.
pub(crate) async fn reserve_path(qmp: &mut Qmp, name: &str) -> Result<(), QmpError> {
    let node = json!({"driver": "null-co", "node-name": name});
    match qmp.execute("blockdev-add", node).await {
        Err(e) if is_duplicate_of(&e, name) => Ok(()),
        added => added.map(drop),
    }
}

/// Releases a reserved path. A node that is a part of a disk is removed with the disk.
pub(crate) async fn release_path(qmp: &mut Qmp, name: &str) -> Result<(), QmpError> {
    match qmp.execute("blockdev-del", json!({"node-name": name})).await {
        Err(e) if e.refusal().is_some_and(|text| text.contains("not owned by the monitor")) => {
            Ok(())
        }
        removed => unless_gone(removed),
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

/// Adds the disk to the controller, at the first of `addresses` that is free.
pub(crate) async fn add_device(
    qmp: &mut Qmp,
    id: &VolumeId,
    backend: Backend,
    controller: &str,
    addresses: &mut Addresses,
) -> Result<ScsiAddress, Error> {
    let serial = fault::value("device-serial").unwrap_or_else(|| id.to_string());
    for address in addresses {
        let mut device = json!({
            "driver": "scsi-hd", "id": id.device(), "drive": id.node(), "serial": serial,
            "bus": format!("{controller}.0"), "scsi-id": address.target, "lun": address.lun,
            // The default on ENOSPC stops the whole VM.
            "werror": "report", "rerror": "report",
        });
        match backend {
            Backend::HostDevice(geometry) => disk_options::add_geometry(&mut device, &geometry),
            Backend::File { rotational } => disk_options::add_rotation(&mut device, rotational),
        }
        match qmp.execute("device_add", device).await {
            Ok(_) => return Ok(address),
            Err(e) if e.refusal().is_some_and(|text| text.contains("lun already used by")) => {}
            Err(e) => return Err(refused(e, id)),
        }
    }
    Err(Error::NoAddress)
}

/// Whether QEMU refused because it has a node of this name.
fn is_duplicate_of(error: &QmpError, name: &str) -> bool {
    error.refusal().is_some_and(|text| text.contains("Duplicate node") && text.contains(name))
}

/// The meaning of QEMU's refusals.
fn refused(error: QmpError, id: &VolumeId) -> Error {
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
