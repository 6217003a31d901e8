//! Detach: release, unlink, revoke, flush, check, delete. A part that does not exist any more is no
//! error.
//!
//! Until the first disk is deleted, a failure restores nodes and access. A process that opens the
//! disk by its own node between the last check and the deletion is not noticed; that time is
//! as long as a system call takes.

use std::{
    fs,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    attach::private_umask,
    attachment::{AccessMode, Attachment},
    busy::{DetachPolicy, busy, find_late_holders, wait_until_free},
    failed::{Failed, OfVolume as _},
    job::DetachJob,
    present::Present,
    queue::Ticket,
    stages::Stages,
};
use crate::{
    block::{self, BlockDevice, Claim, DeviceNumber},
    cgroup::{Filter, Grant, Mode},
    device_node::{Device, Existing, Location, NodePath, remove_parents},
    error::{Error, Result, Unsupported},
    fault,
    holder::Holder,
    mount::Mounts,
    namespace::Target,
    scsi::{ScsiDevice, ScsiHost},
    sysfs,
};

/// A volume that is detached.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) serial: String,
    pub(crate) unchanged: bool,
}

/// Detaches all volumes, and returns the holders that lost a disk by that. If one is busy, nothing
/// is changed; after a disk was deleted, a repeated request continues from there.
pub(crate) fn detach(
    jobs: &mut [DetachJob],
    policy: DetachPolicy,
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
) -> Result<(Vec<Detached>, Vec<Holder>), Failed> {
    ticket.wait_for_turn(deadline)?;
    let mut all = Vec::with_capacity(jobs.len());
    match sequence(jobs, policy, ticket, deadline, stages, &mut all) {
        Ok(interrupted) => {
            let detached = |present: Present| Detached {
                unchanged: !present.changed(),
                serial: present.serial,
            };
            Ok((all.into_iter().map(detached).collect(), interrupted))
        }
        Err(failed) if all.iter().any(|present| present.deleted) => {
            Err(Failed { partial: true, ..failed })
        }
        Err(failed) => {
            let partial = all.iter().any(|present| present.cleared);
            let left = roll_back(jobs, &mut all, deadline);
            Err(Failed { left, partial, ..failed })
        }
    }
}

fn sequence(
    jobs: &mut [DetachJob],
    policy: DetachPolicy,
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
    all: &mut Vec<Present>,
) -> Result<Vec<Holder>, Failed> {
    let hosts = ScsiHost::all()?;
    for job in &*jobs {
        let serial = &job.attachment.serial;
        all.push(look_up(job, &hosts, deadline).of(serial)?);
    }
    stages.end("lookup")?;

    let mut interrupted = wait_until_free(jobs, all, policy, ticket, deadline)?;
    stages.end("release")?;

    for (job, present) in jobs.iter().zip(all.iter_mut()) {
        unlink(job, present, deadline).of(&job.attachment.serial)?;
    }
    stages.end("unlink")?;

    for (job, present) in jobs.iter().zip(all.iter_mut()) {
        revoke(job, present).of(&job.attachment.serial)?;
    }
    stages.end("revoke")?;

    for (job, present) in jobs.iter().zip(all.iter()).filter(|(job, _)| !job.keep_disk) {
        flush(present, policy, deadline).of(&job.attachment.serial)?;
    }
    stages.end("flush")?;

    let late = find_late_holders(jobs, all)?;
    if !late.is_empty() && !policy.force {
        return Err(busy(all, late));
    }
    interrupted
        .extend(late.into_iter().filter(|new| !interrupted.contains(new)).collect::<Vec<_>>());
    stages.end("check")?;

    let parents: Vec<_> = jobs.iter().map(|job| parents_made(job, ticket)).collect();
    for (job, present) in jobs.iter().zip(all.iter_mut()).filter(|(job, _)| !job.keep_disk) {
        if let Some(device) = present.device {
            // The claim is held until the device is gone: the disk cannot be mounted in between.
            device.delete().of(&job.attachment.serial)?;
            present.deleted = true;
            present.claim = None;
        }
        ticket.set_attached(&job.attachment.serial, false);
    }
    stages.end("delete")?;
    jobs.iter().zip(parents).for_each(|(job, parents)| tidy(job, &parents, deadline));
    Ok(interrupted)
}

fn look_up(job: &DetachJob, hosts: &[ScsiHost], deadline: Instant) -> Result<Present> {
    let attachment = &job.attachment;
    let mut present = Present { serial: attachment.serial.clone(), ..Present::default() };
    // Without the controller there is no disk either.
    for host in ScsiHost::candidates(hosts, attachment.controller.as_deref()).unwrap_or_default() {
        let device = host.device(attachment.address);
        if block::serial(device)?.as_ref() == Some(&attachment.serial) {
            present.device = Some(device);
            present.disk = BlockDevice::at(device)?;
        }
    }
    if let Some(target) = &job.target {
        present.location = match find_location(target, attachment, deadline) {
            Ok(location) => Some(location),
            // Such a path cannot be reached, so it has no node of ours.
            Err(
                Error::ParentMissing { .. } | Error::Unsupported(Unsupported::MagicLink { .. }),
            ) => None,
            Err(Error::ContainerEnded { .. }) => None,
            Err(error) => return Err(error),
        };
    }
    Ok(present)
}

fn find_location(target: &Target, attachment: &Attachment, deadline: Instant) -> Result<Location> {
    let path = attachment.path.clone();
    let find = move |root: &_, mounts| Location::find(root, &path, &mounts);
    let of = target.clone();
    target.enter_with(move || Mounts::read(&of), find, drop)?.finish(deadline)
}

/// The device number of the container's node. Where the disk is gone, its number may belong to
/// another disk by now.
fn number(job: &DetachJob, present: &Present) -> Result<Option<DeviceNumber>> {
    if let Some(disk) = &present.disk {
        return Ok(Some(disk.number));
    }
    let Some(outcome) = &job.outcome else { return Ok(None) };
    let is_reused = sysfs::exists(&format!("/sys/dev/block/{}", outcome.device))
        && !is_being_removed(outcome.device, &job.attachment)?;
    Ok((!is_reused).then_some(outcome.device))
}

/// Whether the disk of this number is the attachment's, of which the kernel has removed the SCSI
/// device and not yet the block device: that takes a while if there is data to write. It has no
/// serial number any more.
fn is_being_removed(number: DeviceNumber, attachment: &Attachment) -> Result<bool> {
    let Ok(link) = fs::read_link(format!("/sys/dev/block/{number}")) else { return Ok(false) };
    let Some((device, _)) = link.to_str().and_then(ScsiDevice::from_devpath) else {
        return Ok(false);
    };
    let hosts = ScsiHost::all()?;
    let hosts = ScsiHost::candidates(&hosts, attachment.controller.as_deref()).unwrap_or_default();
    let is_at_address = hosts.iter().any(|host| host.device(attachment.address) == device);
    Ok(is_at_address && block::serial(device)?.is_none())
}

fn unlink(job: &DetachJob, present: &mut Present, deadline: Instant) -> Result<()> {
    let number = number(job, present)?;
    let (Some(location), Some(target)) = (&present.location, &job.target) else { return Ok(()) };
    present.cleared |= match location.remove_leftover(&job.attachment.serial) {
        // The container has something of its own under that name: not ours to remove.
        Err(Error::PathTaken { .. }) => false,
        result => result?,
    };
    let Some(number) = number else { return Ok(()) };
    // The container may have changed its owner.
    let Some(Existing::Block(_, options)) = location.existing()? else { return Ok(()) };
    if fault::skips("unlink") || location.remove(target, number, deadline)?.is_some() {
        match &present.disk {
            Some(_) => present.removed = Some(options),
            None => present.cleared = true,
        }
    }
    Ok(())
}

fn revoke(job: &DetachJob, present: &mut Present) -> Result<()> {
    let Some(target) = job.target.as_ref().filter(|target| !target.has_ended()) else {
        return Ok(());
    };
    if job.keep_right {
        return Ok(());
    }
    let filter = Filter::of(target)?;
    // In a list, an entry that existed before cannot be distinguished from ours. In front of a
    // program there are our entries alone: access that a program itself granted at the attach may
    // have been lost since, and been replaced by ours.
    if filter.mode() == Mode::V1
        && job.outcome.as_ref().is_some_and(|outcome| outcome.allowed_before)
    {
        return Ok(());
    }
    if let Some(number) = number(job, present)? {
        present.revoked = filter.revoke(number)?;
    }
    Ok(())
}

/// Writes back what the guest's caches hold. With force an error is logged, and a disk that does
/// not answer costs half of the remaining time.
fn flush(present: &Present, policy: DetachPolicy, deadline: Instant) -> Result<()> {
    let Some(disk) = &present.disk else { return Ok(()) };
    if !policy.force {
        return present.claim.as_ref().map_or(Ok(()), Claim::flush);
    }
    let patience = deadline.saturating_duration_since(Instant::now()) / 2;
    if let Err(error) = flush_within(disk, patience) {
        tracing::warn!("the last writes may be lost: {}", error.message());
    }
    Ok(())
}

/// Flushes on a thread. One that does not return in time is abandoned: it ends when the disk
/// answers, or is gone.
fn flush_within(disk: &BlockDevice, patience: Duration) -> Result<()> {
    let (sender, result) = mpsc::sync_channel(1);
    let work = disk.clone();
    let flush = move || {
        // The receiver is gone where the thread was abandoned.
        let _ = sender.send(work.write_back());
    };
    let thread = thread::Builder::new().name("block-volume-wb".to_owned()).spawn(flush);
    thread.map_err(Error::system("clone", "a thread"))?;
    let timed_out = || Err(Error::TimedOut { awaited: format!("a flush of {}", disk.name) });
    result.recv_timeout(patience).unwrap_or_else(|_| timed_out())
}

/// The directories that were made for the volume, from the host's record if the host got the reply
/// to the attach.
fn parents_made(job: &DetachJob, ticket: &Ticket) -> Vec<NodePath> {
    let attachment = &job.attachment;
    match &job.outcome {
        Some(outcome) => outcome.parents_made.clone(),
        None => ticket.parents_made(&attachment.serial, &attachment.container_id, &attachment.path),
    }
}

/// Removes the directories that were made for the volume. An error is logged: the volume is
/// detached already.
fn tidy(job: &DetachJob, parents: &[NodePath], deadline: Instant) {
    let Some(target) = job.target.as_ref().filter(|target| !target.has_ended()) else {
        return;
    };
    if parents.is_empty() {
        return;
    }
    if let Err(error) = remove_parents(target, parents, deadline) {
        let path = job.attachment.path.as_str();
        tracing::warn!("directories that were made for {path:?} stay: {}", error.message());
    }
}

/// Restores nodes and access of the containers that run. Continues after an error.
fn roll_back(jobs: &[DetachJob], all: &mut [Present], deadline: Instant) -> Vec<Error> {
    let restore = |(job, present)| restore(job, present, deadline).err();
    let changed = jobs.iter().zip(all).filter(|(_, present)| present.changed());
    changed.filter_map(restore).collect()
}

fn restore(job: &DetachJob, present: &mut Present, deadline: Instant) -> Result<()> {
    let (Some(target), Some(disk)) = (&job.target, &present.disk) else { return Ok(()) };
    let mut restore = || {
        if !present.revoked.is_empty() {
            Filter::of(target)?.allow(disk.number, present.revoked, &mut Grant::default())?;
        }
        if let (Some(options), Some(location)) = (present.removed, present.location.take()) {
            private_umask()?;
            let read_only = job.attachment.access == AccessMode::ReadOnly;
            let device = Device { number: disk.number, options, read_only };
            location.make(target, &job.attachment.serial, device, deadline)?.publish(deadline)?;
        }
        Ok(())
    };
    match restore() {
        // Node and access are gone with the container.
        Err(_) if target.has_ended() => Ok(()),
        result => result,
    }
}
