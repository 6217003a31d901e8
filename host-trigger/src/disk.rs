//! A volume as QEMU has it: a descriptor set, a block node over it
//! ([`blockdev-add`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block-core.blockdev-add))
//! and a `scsi-hd` on a virtio-scsi controller.

use serde_json::{Value, json};

use crate::{
    Error,
    source::{Kind, Source},
    volume::VolumeId,
};
use block_volume_qmp::{Qmp, QmpError};

/// What QEMU takes for both block sizes if it is told nothing. The physical one is never below the
/// logical one.
const DEFAULT_BLOCK_SIZE: u32 = 512;

/// Where a disk is on its controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) target: u32,
    pub(crate) lun: u32,
}

/// Targets that Kata's own numbering from 0 upwards does not reach.
pub(crate) const TARGETS: std::ops::RangeInclusive<u32> = 192..=255;
/// LUN 0 stands for its whole target in some events, and a guest sees those above 255 twice.
const LUNS: u32 = 255;
/// All addresses of ours on one controller.
pub(crate) const ADDRESSES: u32 = LUNS * (*TARGETS.end() - *TARGETS.start() + 1);

/// Addresses to try: each once, from a random one on, so that one is not used again at once.
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
    type Item = Address;

    fn next(&mut self) -> Option<Address> {
        self.left = self.left.checked_sub(1)?;
        let (row, column) = (self.next / LUNS, self.next % LUNS);
        self.next = (self.next + 1) % ADDRESSES;
        Some(Address { target: TARGETS.end() - row, lun: 1 + column })
    }
}

/// Makes the block node over descriptor set `set`; the node below it, of the file, carries the name
/// of the volume's `place`. Is that name free? If not, nothing was made.
pub(crate) async fn add_node(
    qmp: &mut Qmp,
    id: &VolumeId,
    source: &Source,
    read_only: bool,
    set: u64,
    place: Option<&str>,
) -> Result<bool, Error> {
    let (driver, direct) = match source.kind {
        Kind::Block { .. } => ("host_device", true),
        Kind::File => ("file", false),
    };
    // QEMU reads a command byte by byte, so that defaults are left out.
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
        if let Some(place) = place {
            file["node-name"] = json!(place);
        }
        file["filename"] = json!(format!("/dev/fdset/{set}"));
        file["aio"] = json!(aio);
        let mut node = common.clone();
        node["driver"] = json!("raw");
        node["node-name"] = json!(id.node());
        node["file"] = file;
        match qmp.execute("blockdev-add", node).await {
            Ok(_) => return Ok(true),
            Err(e) if place.is_some_and(|place| is_duplicate_of(&e, place)) => return Ok(false),
            // Not built in, or forbidden by the kernel or by QEMU's sandbox.
            Err(e)
                if aio == "io_uring"
                    && e.refusal().is_some_and(|text| text.contains("io_uring")) => {}
            Err(e) => return Err(refused(e, id, source)),
        }
    }
    Err(QmpError::Answer { command: "blockdev-add".into() }.into())
}

/// Keeps the `place` of a further use of a disk, whose own node has the name of the first: by a
/// node that is nothing but a name. One that has the name already keeps the place as well.
pub(crate) async fn keep_place(qmp: &mut Qmp, place: &str) -> Result<(), QmpError> {
    let node = json!({"driver": "null-co", "node-name": place});
    match qmp.execute("blockdev-add", node).await {
        Err(e) if is_duplicate_of(&e, place) => Ok(()),
        added => added.map(drop),
    }
}

/// Lets go of it. A node that is a part of a disk goes with that.
pub(crate) async fn free_place(qmp: &mut Qmp, place: &str) -> Result<(), QmpError> {
    match qmp.execute("blockdev-del", json!({"node-name": place})).await {
        Err(e) if e.refusal().is_some_and(|text| text.contains("not owned by the monitor")) => {
            Ok(())
        }
        removed => unless_gone(removed),
    }
}

/// What is gone already need not be taken away.
pub(crate) fn unless_gone(answer: Result<Value, QmpError>) -> Result<(), QmpError> {
    match answer {
        Err(e) if e.refusal().is_some_and(is_gone) => Ok(()),
        answer => answer.map(drop),
    }
}

pub(crate) fn is_gone(refusal: &str) -> bool {
    refusal.contains("not found") || refusal.contains("Failed to find node")
}

/// Puts the disk on the controller, at the first of `addresses` that is free.
pub(crate) async fn add_device(
    qmp: &mut Qmp,
    id: &VolumeId,
    source: &Source,
    controller: &str,
    addresses: &mut Addresses,
) -> Result<Address, Error> {
    let serial = crate::fault::value("device-serial").unwrap_or_else(|| id.to_string());
    for address in addresses {
        let mut device = json!({
            "driver": "scsi-hd", "id": id.device(), "drive": id.node(), "serial": serial,
            "bus": format!("{controller}.0"), "scsi-id": address.target, "lun": address.lun,
            // The default on ENOSPC stops the whole VM.
            "werror": "report", "rerror": "report",
        });
        if let Kind::Block { logical_block_size, physical_block_size } = source.kind
            && physical_block_size != DEFAULT_BLOCK_SIZE
        {
            device["logical_block_size"] = json!(logical_block_size);
            device["physical_block_size"] = json!(physical_block_size);
        }
        match qmp.execute("device_add", device).await {
            Ok(_) => return Ok(address),
            Err(e) if e.refusal().is_some_and(|text| text.contains("lun already used by")) => {}
            Err(e) => return Err(refused(e, id, source)),
        }
    }
    Err(Error::NoAddress)
}

/// QEMU has a node of this name.
fn is_duplicate_of(error: &QmpError, name: &str) -> bool {
    error.refusal().is_some_and(|text| text.contains("Duplicate node") && text.contains(name))
}

/// What QEMU's refusals mean.
fn refused(error: QmpError, id: &VolumeId, source: &Source) -> Error {
    let text = error.refusal().unwrap_or_default();
    if text.contains("Duplicate node") || text.contains("Duplicate device") {
        return Error::AnotherRun { volume: id.to_string() };
    }
    // Another QEMU, or this one through another node, has the file.
    if (text.contains("Failed to get") && text.contains("lock"))
        || text.contains("Permission conflict")
    {
        return Error::SourceHeld {
            path: source.given.clone(),
            holder: "a QEMU that has it open".into(),
        };
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_address_is_tried_once_and_is_one_of_ours() {
        let all: Vec<_> = Addresses::shuffled().collect();
        assert_eq!(all.len(), 64 * 255);
        assert!(all.iter().all(|a| TARGETS.contains(&a.target) && (1..=255).contains(&a.lun)));
        let distinct: HashSet<_> = all.iter().map(|a| (a.target, a.lun)).collect();
        assert_eq!(distinct.len(), all.len());
    }
}
