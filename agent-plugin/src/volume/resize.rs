//! Resize: reads the capacity of disks again until it is the expected one.
//!
//! The kernel reads a new capacity by itself where the controller reports it
//! (`CAPACITY_DATA_HAS_CHANGED`, virtio-scsi with `hotplug=on`), and otherwise on `rescan` in
//! sysfs, which is written here. Where the capacity is not the expected one even then, the disk's
//! event (`change`, `RESIZE=1`) is awaited. All disks are found and identified before any is
//! rescanned. Then each file system that is mounted is grown to its disk. There is no rollback: the
//! guest only mirrors the device. A request that failed may be repeated.

use std::{os::fd::AsFd as _, sync::Arc, time::Instant};

use super::{
    attachment::Attachment,
    discover,
    failed::{Failed, OfVolume as _},
    grow::{Grown, grow},
    guard::Guard,
    queue::Announced,
    stages::Stages,
};
use crate::{
    block::BlockDevice,
    disk_directory::DiskDirectory,
    error::Result,
    fault, log,
    scsi::{ScsiDevice, ScsiHost},
    uevent::{Received, UeventSocket},
};

/// A volume of which the kernel knows the size.
#[derive(Debug)]
pub(crate) struct Resized {
    pub(crate) serial: String,
    pub(crate) unchanged: bool,
    pub(crate) size: u64,
    /// Of a mount.
    pub(crate) file_system: Option<Grown>,
}

fn size(disk: &BlockDevice) -> Result<u64> {
    DiskDirectory::of(disk)?.size(disk)
}

/// One disk, with its size before the request and now.
#[derive(Debug)]
struct Growing<'a> {
    attachment: &'a Attachment,
    disk: BlockDevice,
    before: u64,
    now: u64,
}

impl Growing<'_> {
    fn read_size(&mut self) -> Result<(), Failed> {
        self.now = size(&self.disk).of(&self.attachment.serial)?;
        Ok(())
    }

    fn is_pending(&self) -> bool {
        self.now != self.attachment.size
    }

    fn awaited(&self) -> String {
        format!("{} to have {} bytes, it has {}", self.disk.name, self.attachment.size, self.now)
    }
}

/// Makes the kernel read the expected sizes.
pub(crate) fn resize(
    attachments: &[Arc<Attachment>],
    announced: Announced,
    deadline: Instant,
    stages: &mut Stages,
) -> Result<Vec<Resized>, Failed> {
    let mut socket = UeventSocket::open()?;
    stages.end("uevent-socket")?;
    // A resize of what is not there cancels no other request.
    let hosts = ScsiHost::all()?;
    for attachment in attachments {
        discover::find_attached(attachment, &hosts).of(&attachment.serial)?;
    }
    let ticket = announced.join()?;
    ticket.wait_for_turn(deadline)?;
    // The containers are not involved.
    let guard = Guard { deadline, ticket: &ticket, jobs: &[] };
    let mut all = Vec::with_capacity(attachments.len());
    let result = sequence(attachments, &mut socket, &guard, stages, &mut all);
    let changed = all.iter().any(|disk| disk.now != disk.before);
    if let Err(mut failed) = result {
        failed.partial = changed;
        return Err(failed);
    }
    let mut resized = Vec::with_capacity(all.len());
    for disk in &all {
        let mut file_system = None;
        if disk.attachment.mount.is_some() {
            file_system = Some(grow(disk.attachment, &disk.disk, disk.now, deadline));
        }
        let is_grown = file_system.as_ref().is_some_and(Grown::is_changed);
        resized.push(Resized {
            serial: disk.attachment.serial.clone(),
            unchanged: disk.before == disk.now && !is_grown,
            size: disk.now,
            file_system,
        });
    }
    if resized.iter().any(|resized| resized.file_system.is_some()) {
        stages.end("grow")?;
    }
    Ok(resized)
}

fn sequence<'a>(
    attachments: &'a [Arc<Attachment>],
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
    stages: &mut Stages,
    all: &mut Vec<Growing<'a>>,
) -> Result<(), Failed> {
    let hosts = ScsiHost::all()?;
    for attachment in attachments {
        let disk = discover::find_attached(attachment, &hosts).of(&attachment.serial)?;
        let size = size(&disk).of(&attachment.serial)?;
        all.push(Growing { attachment, disk, before: size, now: size });
    }
    stages.end("lookup")?;

    guard.check_time(&|| "the look-up".to_owned())?;
    for disk in all.iter_mut().filter(|disk| disk.is_pending() && !fault::skips("rescan")) {
        disk.disk.device.rescan().of(&disk.attachment.serial)?;
        disk.read_size()?;
    }
    stages.end("rescan")?;

    while let Some(pending) = all.iter().position(Growing::is_pending) {
        next_event(all, pending, socket, guard)?;
    }
    Ok(stages.end("wait")?)
}

/// Handles one event, or waits for one; `pending` is the disk to name when that fails.
fn next_event(
    all: &mut [Growing<'_>],
    pending: usize,
    socket: &mut UeventSocket,
    guard: &Guard<'_>,
) -> Result<(), Failed> {
    let serial = all[pending].attachment.serial.as_str();
    guard.check_time(&|| all[pending].awaited()).of(serial)?;
    match socket.receive().of(serial)? {
        Received::Event(event) if event.changes_disk() => {
            let device = ScsiDevice::from_devpath(event.devpath).map(|(device, _)| device);
            let of_event = |disk: &&mut Growing<'_>| Some(disk.disk.device) == device;
            all.iter_mut().filter(of_event).try_for_each(Growing::read_size)
        }
        Received::Event(_) | Received::Foreign => Ok(()),
        Received::Overflow => {
            log::warn(format_args!("uevents were lost, reading sysfs"));
            all.iter_mut().try_for_each(Growing::read_size)
        }
        Received::Nothing => guard.wait(socket.as_fd(), &|| all[pending].awaited()).of(serial),
    }
}
