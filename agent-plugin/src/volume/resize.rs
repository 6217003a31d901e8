//! Resize: reads the capacity of disks again until it is the expected one.
//!
//! The kernel hears of a new capacity by itself where the controller tells it
//! (`CAPACITY_DATA_HAS_CHANGED`, virtio-scsi with `hotplug=on`), and else when it is told to look
//! (`rescan` in sysfs): so it is told. Where the capacity is another one even then, the disk's
//! event (`change`, `RESIZE=1`) is awaited. All disks are found and identified before any is looked
//! at again. There is no undo: the guest only mirrors what the device is; a request that fails half
//! way may be repeated.

use std::{os::fd::AsFd as _, time::Instant};

use super::{Attachment, Failed, Guard, OfVolume as _, Resized, Stages, Ticket, hunt};
use crate::{
    block::BlockDevice,
    fault,
    scsi::{ScsiDevice, ScsiHost},
    uevent::{Received, UeventSocket},
};

/// One disk, and its size as it was and as it is.
#[derive(Debug)]
struct Growing<'a> {
    attachment: &'a Attachment,
    disk: BlockDevice,
    before: u64,
    now: u64,
}

impl Growing<'_> {
    fn look(&mut self) -> Result<(), Failed> {
        self.now = self.disk.size().of(&self.attachment.serial)?;
        Ok(())
    }

    fn is_pending(&self) -> bool {
        self.now != self.attachment.size
    }

    fn awaited(&self) -> String {
        format!("{} to have {} bytes, it has {}", self.disk.name, self.attachment.size, self.now)
    }
}

/// Makes the kernel know the expected sizes.
pub(crate) fn resize(
    attachments: &[Attachment],
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
) -> Result<Vec<Resized>, Failed> {
    ticket.turn(deadline)?;
    // The containers have no part in it.
    let guard = Guard { deadline, ticket, arrivals: &[] };
    let mut all = Vec::with_capacity(attachments.len());
    let result = sequence(attachments, &guard, stages, &mut all);
    let changed = all.iter().any(|disk| disk.now != disk.before);
    result.map_err(|failed| Failed { partial: changed, ..failed })?;
    let resized = |disk: &Growing<'_>| Resized {
        serial: disk.attachment.serial.clone(),
        unchanged: disk.before == disk.now,
        size: disk.now,
    };
    Ok(all.iter().map(resized).collect())
}

fn sequence<'a>(
    attachments: &'a [Attachment],
    guard: &Guard<'_>,
    stages: &mut Stages,
    all: &mut Vec<Growing<'a>>,
) -> Result<(), Failed> {
    let mut socket = UeventSocket::open()?;
    stages.end("uevent-socket")?;

    let hosts = ScsiHost::all()?;
    for attachment in attachments {
        let disk = hunt::find(attachment, &hosts).of(&attachment.serial)?;
        let size = disk.size().of(&attachment.serial)?;
        all.push(Growing { attachment, disk, before: size, now: size });
    }
    stages.end("lookup")?;

    for disk in all.iter_mut().filter(|disk| disk.is_pending() && !fault::skips("rescan")) {
        disk.disk.device.rescan().of(&disk.attachment.serial)?;
        disk.look()?;
    }
    stages.end("rescan")?;

    while let Some(pending) = all.iter().position(Growing::is_pending) {
        next_event(all, pending, &mut socket, guard)?;
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
    guard.check_time(|| all[pending].awaited()).of(serial)?;
    match socket.receive().of(serial)? {
        Received::Event(event) if event.changes_disk() => {
            let device = ScsiDevice::from_devpath(event.devpath).map(|(device, _)| device);
            let of_event = |disk: &&mut Growing<'_>| Some(disk.disk.device) == device;
            all.iter_mut().filter(of_event).try_for_each(Growing::look)
        }
        Received::Event(_) | Received::Foreign => Ok(()),
        Received::Overflow => {
            tracing::warn!("uevents were lost, looking in sysfs");
            all.iter_mut().try_for_each(Growing::look)
        }
        Received::Nothing => guard.wait(socket.as_fd(), || all[pending].awaited()).of(serial),
    }
}
