//! Finds the disks of a batch: look in sysfs, scan, wait for the kernel's events.
//!
//! The uevent socket is open before the first look, so no disk can slip between look and wait. A
//! disk may be there before the request (the kernel of `scsi_mod.scan=async` adds it by itself),
//! and then a scan gives no event.

use std::os::fd::AsFd as _;

use super::{Attachment, Failed, Guard, OfVolume as _};
use crate::{
    block::{self, BlockDevice},
    error::{Error, Result},
    fault,
    scsi::{ScsiDevice, ScsiHost},
    uevent::{Received, UeventSocket},
};

/// The search for one volume.
#[derive(Debug)]
pub(super) struct Search {
    attachment: Attachment,
    /// Where it may be.
    hosts: Vec<ScsiHost>,
    /// Where we asked the kernel to look.
    scanned: Vec<ScsiDevice>,
    /// A disk at our address that is another one.
    other: Option<Error>,
    pub(super) found: Option<BlockDevice>,
    /// Its event came: it is open for business. A disk that was only seen in sysfs may need some
    /// more microseconds.
    pub(super) announced: bool,
}

impl Search {
    pub(super) fn new(attachment: &Attachment, hosts: &[ScsiHost]) -> Result<Search> {
        let hosts = ScsiHost::candidates(hosts, attachment.controller.as_deref())?;
        let mut attachment = attachment.clone();
        if fault::skips("address") {
            attachment.address.lun ^= 0x80;
        }
        Ok(Search {
            attachment,
            hosts,
            scanned: Vec::new(),
            other: None,
            found: None,
            announced: false,
        })
    }

    fn candidates(&self) -> impl Iterator<Item = ScsiDevice> {
        self.hosts.iter().map(|host| host.device(self.attachment.address))
    }

    /// Looks in sysfs.
    pub(super) fn look(&mut self) -> Result<()> {
        for device in self.candidates().collect::<Vec<_>>() {
            if let Some(disk) = BlockDevice::at(device)? {
                self.consider(disk)?;
            }
        }
        Ok(())
    }

    /// Takes the disk if it is ours.
    fn consider(&mut self, disk: BlockDevice) -> Result<()> {
        if self.found.is_some() {
            return Ok(());
        }
        match block::serial(disk.device)? {
            Some(serial) if serial == self.attachment.serial || fault::skips("serial") => {
                self.found = Some(disk)
            }
            serial => {
                self.hosts.retain(|host| host.number != disk.device.host);
                self.other = Some(Error::IdentityMismatch {
                    device: disk.device.to_string(),
                    what: "serial",
                    found: serial.map_or("none".to_owned(), |serial| format!("{serial:?}")),
                    expected: format!("{:?}", self.attachment.serial),
                });
            }
        }
        Ok(())
    }

    /// With another disk at every address that ours could have, there is nothing to wait for.
    fn check(&mut self) -> Result<()> {
        match self.other.take_if(|_| self.found.is_none() && self.hosts.is_empty()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Asks the kernel to look, wherever it knows of no device yet.
    pub(super) fn scan(&mut self) -> Result<()> {
        self.check()?;
        if self.found.is_some() || fault::skips("scan") {
            return Ok(());
        }
        for host in &self.hosts {
            let device = host.device(self.attachment.address);
            if !device.exists() {
                self.scanned.push(device);
                host.scan(self.attachment.address)?;
            }
        }
        Ok(())
    }

    fn is_pending(&self) -> bool {
        self.found.is_none()
    }

    fn awaits(&self, device: ScsiDevice) -> bool {
        self.candidates().any(|candidate| candidate == device)
    }

    fn awaited(&self) -> String {
        let Attachment { address, serial, .. } = &self.attachment;
        format!("a disk with serial {serial} at target {} and LUN {}", address.target, address.lun)
    }

    /// Removes what came because of us: what we scanned in, and what the kernel scanned in by
    /// itself for this request. `in_use`: the volume was attached before this request, so its disk
    /// stays.
    pub(super) fn undo(&self, in_use: bool) -> Result<()> {
        if in_use {
            return Ok(());
        }
        let mut result = Ok(());
        for device in &self.scanned {
            result = result.and(device.delete());
        }
        for device in self.candidates().filter(|device| !self.scanned.contains(device)) {
            // Also one that has no name yet.
            if block::serial(device)?.as_ref() == Some(&self.attachment.serial) {
                result = result.and(device.delete());
            }
        }
        result
    }
}

/// The disk of a volume that is there already.
pub(super) fn find(attachment: &Attachment, hosts: &[ScsiHost]) -> Result<BlockDevice> {
    let hosts = ScsiHost::candidates(hosts, attachment.controller.as_deref())?;
    let mut other = None;
    for device in hosts.iter().map(|host| host.device(attachment.address)) {
        match block::serial(device)? {
            Some(serial) if serial == attachment.serial => {
                if let Some(disk) = BlockDevice::at(device)? {
                    return Ok(disk);
                }
            }
            serial => other = other.or(serial),
        }
    }
    Err(Error::IdentityMismatch {
        device: attachment.address.to_string(),
        what: "serial",
        found: other.map_or("none".to_owned(), |serial| format!("{serial:?}")),
        expected: format!("{:?}", attachment.serial),
    })
}

/// Waits until every disk of the batch is there.
pub(super) fn wait(
    searches: &mut [Search],
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<(), Failed> {
    while let Some(pending) = searches.iter().position(Search::is_pending) {
        next_event(searches, pending, socket, guard)?;
    }
    Ok(())
}

/// Waits for the event of a disk that was seen in sysfs before it. Returns early where events were
/// lost: its own may have been among them, and then the disk is ready.
pub(super) fn wait_for_announcement(
    searches: &mut [Search],
    index: usize,
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<(), Failed> {
    while !searches[index].announced {
        if let Heard::Overflow = next_event(searches, index, socket, guard)? {
            break;
        }
    }
    Ok(())
}

/// What [`next_event`] came across.
enum Heard {
    Anything,
    Overflow,
}

/// Handles one event, or waits for one; `awaited` is the volume to name when that fails.
fn next_event(
    searches: &mut [Search],
    awaited: usize,
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<Heard, Failed> {
    let serial = searches[awaited].attachment.serial.clone();
    // Events may come faster than they are handled, and then there is never a wait that would
    // notice.
    guard.check_time(|| searches[awaited].awaited()).of(&serial)?;
    match socket.receive().of(&serial)? {
        Received::Event(event) if event.adds_disk() => {
            let Some((device, name)) = ScsiDevice::from_devpath(event.devpath) else {
                return Ok(Heard::Anything);
            };
            let Some(number) = event.number else { return Ok(Heard::Anything) };
            for search in searches.iter_mut().filter(|search| search.awaits(device)) {
                let serial = search.attachment.serial.clone();
                search
                    .consider(BlockDevice { device, name: name.to_owned(), number })
                    .of(&serial)?;
                search.announced |= search.found.as_ref().is_some_and(|disk| disk.device == device);
                search.check().of(&serial)?;
            }
        }
        Received::Event(_) | Received::Foreign => {}
        Received::Overflow => {
            tracing::warn!("uevents were lost, looking in sysfs");
            for search in searches.iter_mut().filter(|search| search.is_pending()) {
                let serial = search.attachment.serial.clone();
                search.look().and_then(|()| search.check()).of(&serial)?;
            }
            return Ok(Heard::Overflow);
        }
        Received::Nothing => {
            guard.wait(socket.as_fd(), || searches[awaited].awaited()).of(&serial)?
        }
    }
    Ok(Heard::Anything)
}
