//! The rollback of a detach: a disk that stays gets back what the detach has removed.

use std::{sync::Arc, time::Instant};

use super::{
    attach::private_umask,
    attachment::{AccessMode, Attachment},
    job::DetachJob,
    mount,
    present::Present,
    tree::rollback_until,
};
use crate::{
    cgroup::{Filter, Grant, Mode},
    device_node::{Device, Removal},
    disk_directory::DiskDirectory,
    error::{BoxedError, Error, Result},
    namespace::check_awaited,
};

/// Restores nodes and access of the containers that run. Continues after an error.
pub(super) fn roll_back(
    jobs: &[DetachJob],
    all: &mut [Present],
    deadline: Instant,
) -> Vec<BoxedError> {
    let mut left = Vec::new();
    for (job, present) in jobs.iter().zip(all).filter(|(_, present)| present.changed()) {
        if let Err(error) = restore(job, present, rollback_until(deadline)) {
            left.push(error);
        }
    }
    left
}

fn restore(job: &DetachJob, present: &mut Present, until: Instant) -> Result<()> {
    let (Some(target), Some(disk)) = (&job.target, &present.disk) else { return Ok(()) };
    // Its number may be another disk's by now, which must not get to the container.
    let Some(directory) = DiskDirectory::open(disk.device)? else { return Ok(()) };
    if directory.serial()?.as_ref() != Some(&present.serial)
        || directory.disk()?.as_ref() != Some(disk)
    {
        return Ok(());
    }
    if job.is_mount() {
        // Our own claim would prevent it.
        present.claim = None;
        let (attachment, outcome) = (&job.attachment, job.outcome.as_deref());
        return match mount::restore(attachment, outcome, target, disk, until) {
            Err(_) if target.has_ended() => Ok(()),
            result => result,
        };
    }
    let Attachment { serial, container_id, path, .. } = &*job.attachment;
    Removal::roll_back(serial, container_id, path);
    let mut restore = || {
        if !present.revoked.is_empty() {
            Filter::of(target)?.allow(disk.number, present.revoked, &mut Grant::default())?;
        }
        let Some(options) = present.removed else { return Ok(()) };
        let Some(location) = present.location.take().and_then(Arc::into_inner) else {
            return Err(Error::NodeMoved { path: job.attachment.path.as_str().to_owned() }.into());
        };
        let read_only = job.attachment.access == AccessMode::ReadOnly;
        let guarded = Filter::of(target)?.mode() != Mode::None;
        let device = Device { number: disk.number, options, read_only, guarded };
        let (of, serial) = (target.clone(), present.serial.clone());
        let make = move || {
            private_umask()?;
            check_awaited()?;
            location.make(&of, &serial, device, until)?.publish(until)
        };
        target.aside(make)?.finish(until)
    };
    match restore() {
        // Node and access are gone with the container.
        Err(_) if target.has_ended() => Ok(()),
        result => result,
    }
}
