//! Detach: release, sync, unlink, unmount, revoke, flush, check, quiesce, delete. A part that does
//! not exist any more is no error.
//!
//! The container's tree is not trusted, and has no veto: what it answers, or that it does not
//! answer, never ends a detach. What could not be removed there is reported, and the disk goes.
//! Each step in a tree has a part of the remaining time only.
//!
//! A file system that is mounted is unmounted plainly, unless it is forced: what is in use stays,
//! as the kernel says, and the detach fails.
//!
//! Before the first disk is deleted, the caller is told that all are released: QEMU removes them at
//! the same time as the kernel does. Until then a failure restores nodes and access. Nothing is
//! removed after the deadline. A process that opens the disk by its own node between the last check
//! and the deletion is not noticed; that time is as long as a flush of nothing takes.

use std::{sync::Arc, time::Instant};

use super::{
    attachment::Attachment,
    busy::{busy, find_late_holders, wait_until_free},
    disk_removal::{Quiesced, delete, flush, quiesce},
    failed::{Failed, OfVolume as _},
    job::DetachJob,
    patience::DetachPolicy,
    present::{LeftBehind, Present},
    queue::Ticket,
    restoration::roll_back,
    stages::Stages,
    tree::{Trees, check_time},
    unlink::{number, unlink},
    unmount,
};
use crate::{
    cgroup::{Filter, Mode},
    device_node::{Location, NodePath, remove_parents},
    disk_directory::DiskDirectory,
    error::{Error, Result},
    fault,
    holder::{Holder, HolderKind},
    log,
    mount::Mounts,
    namespace::Target,
    scsi::ScsiHost,
};

/// A volume that is detached.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) serial: String,
    pub(crate) unchanged: bool,
}

/// What a detach did.
#[derive(Debug)]
pub(crate) struct DetachOutput {
    pub(crate) volumes: Vec<Detached>,
    /// The holders that lost a disk.
    pub(crate) interrupted: Vec<Holder>,
    pub(crate) left_behind: Vec<LeftBehind>,
}

/// Is told the serials of the disks that QEMU may remove from now on.
pub(super) type Tell<'a> = &'a mut dyn FnMut(&[&str]);

/// Detaches all volumes. If one is busy, nothing is changed; after the disks were released or one
/// was deleted, a repeated request continues from there.
pub(crate) fn detach(
    jobs: &mut [DetachJob],
    policy: DetachPolicy,
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
    released: Tell<'_>,
) -> Result<DetachOutput, Failed> {
    ticket.wait_for_turn(deadline)?;
    let mut all = Vec::with_capacity(jobs.len());
    let mut trees = Trees::new(deadline);
    let result = sequence(jobs, policy, ticket, deadline, stages, (&mut all, &mut trees), released);
    let mut failed = match result {
        Ok(interrupted) => {
            let mut output =
                DetachOutput { volumes: Vec::new(), interrupted, left_behind: Vec::new() };
            for present in &mut all {
                let (serial, unchanged) = (present.serial.clone(), !present.changed());
                output.volumes.push(Detached { serial, unchanged });
                output.left_behind.append(&mut present.left);
            }
            return Ok(output);
        }
        Err(failed) => failed,
    };
    if all.iter().any(|present| present.deleted) {
        failed.partial = true;
        return Err(failed);
    }
    failed.partial = all.iter().any(|present| present.cleared || present.uncertain);
    failed.left = roll_back(jobs, &mut all, deadline);
    Err(failed)
}

fn sequence(
    jobs: &mut [DetachJob],
    policy: DetachPolicy,
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
    (all, trees): (&mut Vec<Present>, &mut Trees),
    released: Tell<'_>,
) -> Result<Vec<Holder>, Failed> {
    let hosts = ScsiHost::all()?;
    for job in &*jobs {
        all.push(look_up(job, &hosts, trees).of(&job.attachment.serial)?);
    }
    stages.end("lookup")?;

    let mut interrupted = wait_until_free(jobs, all, policy, ticket, deadline)?;
    stages.end("release")?;

    if jobs.iter().any(DetachJob::is_mount) {
        for (job, present) in jobs.iter().zip(all.iter_mut()).filter(|(job, _)| job.is_mount()) {
            check_time(deadline, "the write back of the file system").of(&present.serial)?;
            unmount::write_back(job, present, policy, deadline).of(&present.serial)?;
        }
        stages.end("sync")?;
    }

    // A volume may be mounted on an earlier one.
    for (job, present) in jobs.iter().zip(all.iter_mut()).rev() {
        check_time(deadline, "the removal from the container").of(&present.serial)?;
        if job.is_mount() {
            unmount::unmount(job, present, policy, trees).of(&present.serial)?;
        } else if let Err(error) = unlink(job, present, trees) {
            present.leave(job, "device node", &error);
        }
    }
    stages.end("unlink")?;

    if jobs.iter().any(DetachJob::is_mount) {
        unmount::end(jobs, all, policy, deadline)?;
        stages.end("unmount")?;
    }

    for (job, present) in jobs.iter().zip(all.iter_mut()).filter(|(job, _)| !job.is_mount()) {
        check_time(deadline, "the revocation of the right").of(&present.serial)?;
        match revoke(job, present) {
            Err(error) if policy.force || job.target.as_ref().is_some_and(Target::has_ended) => {
                present.leave(job, "right", &error);
            }
            result => result.of(&present.serial)?,
        }
    }
    stages.end("revoke")?;

    for (_, present) in jobs.iter().zip(all.iter()).filter(|(job, _)| !job.keep_disk) {
        check_time(deadline, "the flush").of(&present.serial)?;
        flush(present, policy, deadline).of(&present.serial)?;
    }
    stages.end("flush")?;

    let late = find_late_holders(jobs, all, policy, ticket, deadline)?;
    if !late.is_empty() && !policy.force {
        return Err(busy(all, late));
    }
    for new in late {
        // Where its file was detached, a process shows another path to it.
        let is_known = |known: &Holder| {
            let is_process = (known.kind, new.kind) == (HolderKind::Process, HolderKind::Process);
            is_process && (&known.serial, known.pid) == (&new.serial, new.pid) || *known == new
        };
        if !interrupted.iter().any(is_known) {
            interrupted.push(new);
        }
    }
    stages.end("check")?;

    // What holds a disk that it loses by force may have something to write until the end.
    let mut is_quiet = !policy.force;
    for (_, present) in jobs.iter().zip(all.iter_mut()).filter(|(job, _)| !job.keep_disk) {
        is_quiet = is_quiet && quiesce(present, deadline).of(&present.serial)?;
    }
    stages.end("quiesce")?;
    if is_quiet {
        release(jobs, all, released);
    }

    let mut parents = Vec::with_capacity(jobs.len());
    for job in &*jobs {
        parents.push(parents_made(job, ticket));
    }
    for (job, present) in jobs.iter().zip(all.iter_mut()).filter(|(job, _)| !job.keep_disk) {
        check_time(deadline, "the deletion of the disk").of(&job.attachment.serial)?;
        delete(present, ticket, deadline).of(&job.attachment.serial)?;
    }
    stages.end("delete")?;
    for (job, parents) in jobs.iter().zip(&parents) {
        tidy(job, parents, trees);
        let Attachment { serial, container_id, path, .. } = &*job.attachment;
        ticket.forget_parents(serial, container_id, path);
        if !job.keep_disk {
            ticket.set_attached(serial, false);
        }
    }
    Ok(interrupted)
}

/// Tells the caller which disks are released. They are taken for deleted: QEMU may have begun.
fn release(jobs: &[DetachJob], all: &mut [Present], released: Tell<'_>) {
    let mut serials = Vec::with_capacity(all.len());
    for (_, present) in jobs.iter().zip(all).filter(|(job, _)| !job.keep_disk) {
        present.deleted = present.device.is_some();
        present.quiesced.iter_mut().for_each(Quiesced::disarm);
        serials.push(&*present.serial);
    }
    if !serials.is_empty() {
        released(&serials);
    }
    fault::at("detach-after-released");
}

fn look_up(job: &DetachJob, hosts: &[ScsiHost], trees: &mut Trees) -> Result<Present> {
    let attachment = &job.attachment;
    let mut present = Present { serial: attachment.serial.clone(), ..Present::default() };
    // Without the controller there is no disk either.
    for host in ScsiHost::candidates(hosts, attachment.controller.as_deref()).unwrap_or_default() {
        let device = host.device(attachment.address);
        if let Some(directory) = DiskDirectory::open(device)?
            && directory.serial()?.as_ref() == Some(&attachment.serial)
        {
            present.device = Some(device);
            present.disk = directory.disk()?;
        }
    }
    if let Some(target) = job.target.as_ref().filter(|_| !job.is_mount()) {
        match find_location(target, attachment, trees) {
            Ok(location) => present.location = Some(Arc::new(location)),
            // Such a path cannot be reached. It had a node, if an attach made one for this
            // container.
            Err(error) if cannot_be_reached(&error) && !had_node(job, target) => {}
            Err(error) => present.leave(job, "device node", &error),
        }
    }
    Ok(present)
}

fn cannot_be_reached(error: &Error) -> bool {
    error.is_unreachable_path() || matches!(error, Error::ContainerEnded { .. })
}

/// Whether an attach made a node for this container, and not for an earlier one of the same id.
fn had_node(job: &DetachJob, target: &Target) -> bool {
    let started = || target.started().ok();
    job.outcome
        .as_ref()
        .is_some_and(|outcome| started().is_none_or(|started| started == outcome.container_started))
}

fn find_location(target: &Target, attachment: &Attachment, trees: &mut Trees) -> Result<Location> {
    let path = attachment.path.clone();
    let find = move |root: &_, mounts: &_| Location::find(root, &path, mounts);
    trees.run(target, |_| Mounts::visit(target, find))
}

/// The filter of a container, also of one that has ended. `None`: its group is gone, and every
/// right with it.
fn filter_of(target: &Target) -> Result<Option<Filter<'_>>> {
    match Filter::of(target) {
        Err(_) if target.has_ended() => {
            Filter::of_group(&target.container.cgroup, &target.container.device_rules)
        }
        result => result.map(Some),
    }
}

fn revoke(job: &DetachJob, present: &mut Present) -> Result<()> {
    let Some(target) = job.target.as_ref().filter(|_| !job.keep_right) else { return Ok(()) };
    let Some(filter) = filter_of(target)? else { return Ok(()) };
    // In a list, an entry that existed before cannot be distinguished from ours. In front of a
    // program there are our entries alone: access that a program itself granted at the attach may
    // have been lost since, and been replaced by ours.
    if filter.mode() == Mode::V1
        && job.outcome.as_ref().is_some_and(|outcome| outcome.allowed_before)
    {
        return Ok(());
    }
    if let Some(number) = number(job, present) {
        present.revoked = filter.revoke(number)?;
    }
    Ok(())
}

/// The directories that were made for the volume, from the host's record if the host got the reply
/// to the attach.
fn parents_made(job: &DetachJob, ticket: &Ticket) -> Vec<NodePath> {
    let Attachment { serial, container_id, path, .. } = &*job.attachment;
    match &job.outcome {
        Some(outcome) => outcome.parents_made.clone(),
        None => ticket.parents_made(serial, container_id, path),
    }
}

/// Removes the directories that were made for the volume. An error is logged: the volume is
/// detached already.
fn tidy(job: &DetachJob, parents: &[NodePath], trees: &mut Trees) {
    let Some(target) = job.target.as_ref().filter(|_| !parents.is_empty()) else { return };
    if job.is_mount() && fault::skips("tidy") {
        return;
    }
    if let Err(error) = trees.ask(target, |until| remove_parents(target, parents, until)) {
        let path = job.attachment.path.as_str();
        log::warn(format_args!(
            "directories that were made for {path:?} stay: {}",
            error.message()
        ));
    }
}
