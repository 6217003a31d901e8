//! Removes what a container has of a volume that is a device node, wherever it is.

use std::{fs, time::Instant};

use super::{
    attachment::{Attachment, Way},
    job::DetachJob,
    present::Present,
    tree::Trees,
};
use crate::{
    block::{self, DeviceNumber},
    cgroup::{Filter, Mode},
    device_node::{Location, NodeKind, Removal, Removed},
    error::Result,
    fault,
    namespace::{Target, check_awaited},
    scsi::{ScsiDevice, ScsiHost},
    sysfs,
};

/// The device number of the container's node. Where the disk is gone, its number may belong to
/// another disk by now.
pub(super) fn number(job: &DetachJob, present: &Present) -> Option<DeviceNumber> {
    if let Some(disk) = &present.disk {
        return Some(disk.number);
    }
    let outcome = job.outcome.as_ref()?;
    let is_reused = sysfs::exists(&format!("/sys/dev/block/{}", outcome.device))
        && !is_being_removed(outcome.device, &job.attachment);
    (!is_reused).then_some(outcome.device)
}

/// Whether the disk of this number is the attachment's, of which the kernel has removed the SCSI
/// device and not yet the block device: that takes a while if there is data to write. It has no
/// serial number any more.
fn is_being_removed(number: DeviceNumber, attachment: &Attachment) -> bool {
    let Ok(link) = fs::read_link(format!("/sys/dev/block/{number}")) else { return false };
    let Some((device, _)) = link.to_str().and_then(ScsiDevice::from_devpath) else { return false };
    let hosts = ScsiHost::all().unwrap_or_default();
    let hosts = ScsiHost::candidates(&hosts, attachment.controller.as_deref()).unwrap_or_default();
    let is_at_address = hosts.iter().any(|host| host.device(attachment.address) == device);
    is_at_address && block::serial(device).is_ok_and(|serial| serial.is_none())
}

/// Removes what the container has of the volume, wherever it is.
pub(super) fn unlink(job: &DetachJob, present: &mut Present, trees: &mut Trees) -> Result<()> {
    let Attachment { serial, container_id, path, .. } = &*job.attachment;
    let number = number(job, present);
    let bind = Way::Node(NodeKind::Bind);
    let was_bind = job.outcome.as_ref().is_some_and(|outcome| outcome.way == bind);
    let removal =
        |guarded| Removal::new(serial, container_id, path, number, guarded).of_bind_node(was_bind);
    let Some(target) = &job.target else {
        present.leave_all(removal(false).after_its_end(trees.until()).left);
        return Ok(());
    };
    // What cannot be read protects nothing.
    let guarded = Filter::of(target).is_ok_and(|filter| filter.mode() != Mode::None);
    let (removal, silent) = (removal(guarded), removal(guarded));
    // On a thread: a container can make its own tmpfs wait, too (a directory stays locked while an
    // entry of it is copied to memory that a file system of the container provides).
    let (location, of, serial) = (present.location.clone(), target.clone(), serial.clone());
    let result = trees.run(target, |until| {
        target.aside(move || Ok(remove_nodes(&removal, location.as_deref(), &of, &serial, until)))
    });
    present.uncertain = result.as_ref().is_err_and(|error| error.is_time_out());
    let (leftover, removed) = match result {
        Ok(done) => done,
        Err(error) => {
            // The container's file system does not answer: the node stays, and its number with it.
            let is_known = !present.left.is_empty();
            present.leave_all(silent.after_its_end(trees.until()).left);
            // The look-up has reported the same.
            return if is_known { Ok(()) } else { Err(error) };
        }
    };
    present.cleared |= leftover;
    match &present.disk {
        Some(_) => present.removed = removed.options,
        None => present.cleared |= removed.options.is_some(),
    }
    present.leave_all(removed.left);
    Ok(())
}

/// Removes the temporary node of an earlier run, and the node. Returns whether there was one of the
/// former.
fn remove_nodes(
    removal: &Removal,
    location: Option<&Location>,
    target: &Target,
    serial: &str,
    until: Instant,
) -> (bool, Removed) {
    // The container may have something of its own under that name: then there is none of ours.
    let leftover = check_awaited()
        .and_then(|()| location.map_or(Ok(false), |location| location.remove_leftover(serial)))
        .unwrap_or(false);
    if fault::skips("unlink") {
        return (leftover, Removed::default());
    }
    (leftover, removal.from(target, location, until))
}
