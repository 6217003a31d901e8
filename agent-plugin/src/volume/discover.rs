//! Discovers the disks of a request: reads sysfs, scans, waits for the kernel's events.
//!
//! The uevent socket is open before sysfs is read first, so no disk is missed between reading and
//! waiting. A disk may exist before the request (with `scsi_mod.scan=async` the kernel adds it by
//! itself), and then a scan causes no event.

use std::os::fd::AsFd as _;

use std::sync::Arc;

use super::{
    attachment::Attachment,
    failed::{Failed, OfVolume as _},
    guard::Guard,
};
use crate::{
    block::{self, BlockDevice},
    disk_directory::DiskDirectory,
    error::{BoxedError, Mismatch, Result},
    fault, log,
    scsi::{ScsiDevice, ScsiHost},
    text::displayed,
    uevent::{Received, UeventSocket},
};

/// The search for one volume.
#[derive(Debug)]
pub(super) struct Search {
    attachment: Arc<Attachment>,
    /// The hosts that may have it.
    hosts: Vec<ScsiHost>,
    /// The addresses that we scanned; a host may have been ruled out since.
    scanned: Vec<ScsiDevice>,
    /// The error for a disk at our address with another serial.
    mismatch: Option<BoxedError>,
    pub(super) found: Option<BlockDevice>,
    /// Its event was received, so that it can be opened. A disk that was found in sysfs may need
    /// some more microseconds.
    pub(super) announced: bool,
}

impl Search {
    pub(super) fn new(attachment: &Arc<Attachment>, hosts: &[ScsiHost]) -> Result<Search> {
        let hosts = ScsiHost::candidates(hosts, attachment.controller.as_deref())?;
        let mut attachment = attachment.clone();
        if fault::skips("address") {
            Arc::make_mut(&mut attachment).address.lun ^= 0x80;
        }
        Ok(Search {
            attachment,
            hosts,
            scanned: Vec::new(),
            mismatch: None,
            found: None,
            announced: false,
        })
    }

    fn candidates(&self) -> impl Iterator<Item = ScsiDevice> {
        self.hosts.iter().map(|host| host.device(self.attachment.address))
    }

    /// Looks the disk up in sysfs.
    pub(super) fn read_sysfs(&mut self) -> Result<()> {
        // A host that has another disk there is ruled out meanwhile.
        for host in self.hosts.clone() {
            let device = host.device(self.attachment.address);
            if let Some(disk) = BlockDevice::at(device)? {
                self.take_if_ours(disk)?;
            }
        }
        Ok(())
    }

    /// Takes the disk if it has our serial.
    fn take_if_ours(&mut self, disk: BlockDevice) -> Result<()> {
        if self.found.is_some() {
            return Ok(());
        }
        match block::serial(disk.device)? {
            Some(serial) if serial == self.attachment.serial || fault::skips("serial") => {
                self.found = Some(disk)
            }
            serial => {
                self.hosts.retain(|host| host.number != disk.device.host);
                self.mismatch = Some(
                    Mismatch {
                        device: displayed(&disk.device),
                        what: "serial",
                        found: serial.map_or("none".to_owned(), |serial| format!("{serial:?}")),
                        expected: format!("{:?}", self.attachment.serial),
                    }
                    .into(),
                );
            }
        }
        Ok(())
    }

    /// Begins anew where another disk had the address before QEMU was to add ours. QEMU refuses an
    /// address that is taken, so that disk is gone by now, or will be.
    pub(super) fn replace_mismatch(
        &mut self,
        attachment: &Arc<Attachment>,
        hosts: &[ScsiHost],
    ) -> Result<()> {
        if self.mismatch.is_none() {
            return Ok(());
        }
        *self = Search::new(attachment, hosts)?;
        self.read_sysfs()
    }

    /// Fails where every address that the disk could have is taken by another one: then there is
    /// nothing to wait for.
    pub(super) fn check_mismatch(&mut self) -> Result<()> {
        match self.mismatch.take_if(|_| self.found.is_none() && self.hosts.is_empty()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Scans the address on every host where the kernel knows no device yet.
    pub(super) fn scan(&mut self) -> Result<()> {
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
        let Attachment { address, serial, .. } = &*self.attachment;
        format!("a disk with serial {serial} at target {} and LUN {}", address.target, address.lun)
    }

    /// Removes the disk that this request added, by a scan or because the kernel scanned by itself,
    /// and no other: somebody else may have plugged one there in the meantime. `in_use`: the volume
    /// was attached before this request, so its disk stays.
    pub(super) fn roll_back(&self, in_use: bool) -> Result<()> {
        if in_use {
            return Ok(());
        }
        let mut devices = self.scanned.clone();
        for device in self.candidates() {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        let mut result = Ok(());
        for device in devices {
            let deleted = device.delete(&self.attachment.serial).map(|_| ());
            result = result.and(deleted);
        }
        result
    }
}

/// The disk of a volume that is attached already.
pub(super) fn find_attached(attachment: &Attachment, hosts: &[ScsiHost]) -> Result<BlockDevice> {
    let hosts = ScsiHost::candidates(hosts, attachment.controller.as_deref())?;
    let mut other = None;
    for device in hosts.iter().map(|host| host.device(attachment.address)) {
        let Some(directory) = DiskDirectory::open(device)? else { continue };
        match directory.serial()? {
            Some(serial) if serial == attachment.serial => {
                if let Some(disk) = directory.disk()? {
                    return Ok(disk);
                }
            }
            serial => other = other.or(serial),
        }
    }
    Err(Mismatch {
        device: displayed(&attachment.address),
        what: "serial",
        found: other.map_or("none".to_owned(), |serial| format!("{serial:?}")),
        expected: format!("{:?}", attachment.serial),
    }
    .into())
}

/// Waits until every disk of the request is found.
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

/// Waits for the event of a disk that was found in sysfs before it. Returns early where events were
/// lost: its own may have been among them, and then the disk is ready.
pub(super) fn wait_for_event_of(
    index: usize,
    searches: &mut [Search],
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<(), Failed> {
    while !searches[index].announced {
        if let Handled::Overflow = next_event(searches, index, socket, guard)? {
            break;
        }
    }
    Ok(())
}

/// What [`next_event`] handled.
enum Handled {
    Anything,
    Overflow,
}

/// Handles one event, or waits for one; `awaited` is the volume to name when that fails.
fn next_event(
    searches: &mut [Search],
    awaited: usize,
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<Handled, Failed> {
    let serial = searches[awaited].attachment.serial.clone();
    // Events may arrive faster than they are handled, and then no wait would notice the deadline.
    guard.check_time(&|| searches[awaited].awaited()).of(&serial)?;
    match socket.receive().of(&serial)? {
        Received::Event(event) if event.adds_disk() => {
            let Some((device, name)) = ScsiDevice::from_devpath(event.devpath) else {
                return Ok(Handled::Anything);
            };
            let Some(number) = event.number else { return Ok(Handled::Anything) };
            for search in searches.iter_mut().filter(|search| search.awaits(device)) {
                let serial = search.attachment.serial.clone();
                search
                    .take_if_ours(BlockDevice { device, name: name.to_owned(), number })
                    .of(&serial)?;
                search.announced |= search.found.as_ref().is_some_and(|disk| disk.device == device);
                search.check_mismatch().of(&serial)?;
            }
        }
        Received::Event(_) | Received::Foreign => {}
        Received::Overflow => {
            log::warn(format_args!("uevents were lost, reading sysfs"));
            for search in searches.iter_mut().filter(|search| search.is_pending()) {
                let serial = search.attachment.serial.clone();
                search.read_sysfs().and_then(|()| search.check_mismatch()).of(&serial)?;
            }
            return Ok(Handled::Overflow);
        }
        Received::Nothing => {
            guard.wait(socket.as_fd(), &|| searches[awaited].awaited()).of(&serial)?
        }
    }
    Ok(Handled::Anything)
}
