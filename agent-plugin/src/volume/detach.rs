//! Detach: release, unlink, revoke, flush, look again, delete. What is not there any more is no
//! error.
//!
//! Until the first disk is deleted, a failure puts nodes and rights back. A process that opens the
//! disk by a node of its own making between the last look and the deletion is not noticed; that is
//! as long as a system call takes.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Access, Attachment, Departure, Detached, Failed, OfVolume as _, Stages, Ticket,
    attach::private_umask,
    release::{Terms, busy, look_again, release},
};
use crate::{
    block::{self, BlockDevice, Claim, DeviceNumber},
    cgroup::{Filter, Grant, Mode, Rights},
    device_node::{Device, NodeOptions, NodePath, Occupant, Place, remove_parents},
    error::{Error, Result, Unsupported},
    fault,
    holders::Holder,
    mount::Mounts,
    namespace::Target,
    scsi::{ScsiDevice, ScsiHost},
    sysfs,
};

/// What is there of one volume.
#[derive(Debug, Default)]
pub(super) struct Present {
    pub(super) serial: String,
    /// With our serial; it may have no name yet.
    pub(super) device: Option<ScsiDevice>,
    pub(super) disk: Option<BlockDevice>,
    place: Option<Place>,
    pub(super) claim: Option<Claim>,
    /// The node that was there.
    removed: Option<NodeOptions>,
    /// The right that was there.
    revoked: Rights,
    /// The disk is deleted.
    deleted: bool,
    /// Something is gone that is not put back: what an earlier run left behind.
    cleared: bool,
}

impl Present {
    fn changed(&self) -> bool {
        self.removed.is_some() || !self.revoked.is_empty() || self.deleted || self.cleared
    }
}

/// Detaches all volumes, and tells who lost one by that. If one is busy, nothing is changed; after
/// a disk was deleted, a repetition goes on from there.
pub(crate) fn detach(
    departures: &mut [Departure],
    terms: Terms,
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
) -> Result<(Vec<Detached>, Vec<Holder>), Failed> {
    ticket.turn(deadline)?;
    let mut all = Vec::with_capacity(departures.len());
    match sequence(departures, terms, ticket, deadline, stages, &mut all) {
        Ok(broke) => {
            let detached = |present: Present| Detached {
                unchanged: !present.changed(),
                serial: present.serial,
            };
            Ok((all.into_iter().map(detached).collect(), broke))
        }
        Err(failed) if all.iter().any(|present| present.deleted) => {
            Err(Failed { partial: true, ..failed })
        }
        Err(failed) => {
            let partial = all.iter().any(|present| present.cleared);
            let left = restore(departures, &mut all, deadline);
            Err(Failed { left, partial, ..failed })
        }
    }
}

fn sequence(
    departures: &mut [Departure],
    terms: Terms,
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
    all: &mut Vec<Present>,
) -> Result<Vec<Holder>, Failed> {
    let hosts = ScsiHost::all()?;
    for departure in &*departures {
        let serial = &departure.attachment.serial;
        all.push(look_up(departure, &hosts, deadline).of(serial)?);
    }
    stages.end("lookup")?;

    let mut broke = release(departures, all, terms, ticket, deadline)?;
    stages.end("release")?;

    for (departure, present) in departures.iter().zip(all.iter_mut()) {
        unlink(departure, present, deadline).of(&departure.attachment.serial)?;
    }
    stages.end("unlink")?;

    for (departure, present) in departures.iter().zip(all.iter_mut()) {
        revoke(departure, present).of(&departure.attachment.serial)?;
    }
    stages.end("revoke")?;

    for (departure, present) in departures.iter().zip(all.iter()).filter(|(it, _)| !it.keep_disk) {
        flush(present, terms, deadline).of(&departure.attachment.serial)?;
    }
    stages.end("flush")?;

    let slipped_in = look_again(departures, all)?;
    if !slipped_in.is_empty() && !terms.force {
        return Err(busy(all, slipped_in));
    }
    broke.extend(slipped_in.into_iter().filter(|new| !broke.contains(new)).collect::<Vec<_>>());
    stages.end("check")?;

    let made: Vec<_> = departures.iter().map(|departure| made_for(departure, ticket)).collect();
    for (departure, present) in
        departures.iter().zip(all.iter_mut()).filter(|(it, _)| !it.keep_disk)
    {
        if let Some(device) = present.device {
            // The claim is held until the device is gone: nobody can mount it in between.
            device.delete().of(&departure.attachment.serial)?;
            present.deleted = true;
            present.claim = None;
        }
        ticket.set_attached(&departure.attachment.serial, false);
    }
    stages.end("delete")?;
    departures.iter().zip(made).for_each(|(departure, made)| tidy(departure, &made, deadline));
    Ok(broke)
}

fn look_up(departure: &Departure, hosts: &[ScsiHost], deadline: Instant) -> Result<Present> {
    let attachment = &departure.attachment;
    let mut present = Present { serial: attachment.serial.clone(), ..Present::default() };
    // Without the controller there is no disk either.
    for host in ScsiHost::candidates(hosts, attachment.controller.as_deref()).unwrap_or_default() {
        let device = host.device(attachment.address);
        if block::serial(device)?.as_ref() == Some(&attachment.serial) {
            present.device = Some(device);
            present.disk = BlockDevice::at(device)?;
        }
    }
    if let Some(target) = &departure.target {
        present.place = match place(target, attachment, deadline) {
            Ok(place) => Some(place),
            // There is no way to such a path, so no node of ours is there.
            Err(
                Error::ParentMissing { .. } | Error::Unsupported(Unsupported::MagicLink { .. }),
            ) => None,
            Err(Error::ContainerEnded { .. }) => None,
            Err(error) => return Err(error),
        };
    }
    Ok(present)
}

fn place(target: &Target, attachment: &Attachment, deadline: Instant) -> Result<Place> {
    let path = attachment.path.clone();
    let find = move |root: &_, mounts| Place::find(root, &path, &mounts);
    let of = target.clone();
    target.enter_with(move || Mounts::read(&of), find, drop)?.finish(deadline)
}

/// The number of the container's node. Where the disk is gone, its number may be another disk's by
/// now.
fn number(departure: &Departure, present: &Present) -> Result<Option<DeviceNumber>> {
    if let Some(disk) = &present.disk {
        return Ok(Some(disk.number));
    }
    let Some(outcome) = &departure.outcome else { return Ok(None) };
    let taken = sysfs::exists(&format!("/sys/dev/block/{}", outcome.device));
    Ok((!taken).then_some(outcome.device))
}

fn unlink(departure: &Departure, present: &mut Present, deadline: Instant) -> Result<()> {
    let number = number(departure, present)?;
    let (Some(place), Some(target)) = (&present.place, &departure.target) else { return Ok(()) };
    present.cleared |= match place.remove_leftover(&departure.attachment.serial) {
        // The container has something of its own under that name: not ours to remove.
        Err(Error::PathTaken { .. }) => false,
        result => result?,
    };
    let Some(number) = number else { return Ok(()) };
    // The container may have given it another owner.
    let Some(Occupant::Block(_, options)) = place.occupant()? else { return Ok(()) };
    if fault::skips("unlink") || place.remove(target, number, deadline)?.is_some() {
        match &present.disk {
            Some(_) => present.removed = Some(options),
            None => present.cleared = true,
        }
    }
    Ok(())
}

fn revoke(departure: &Departure, present: &mut Present) -> Result<()> {
    let Some(target) = departure.target.as_ref().filter(|target| !target.has_ended()) else {
        return Ok(());
    };
    if departure.keep_right {
        return Ok(());
    }
    let filter = Filter::of(target)?;
    // In a list, what was there before us looks like what we added. In front of a program there is
    // ours alone: something that was granted by itself may have been lost since, and been replaced.
    if filter.mode() == Mode::V1
        && departure.outcome.as_ref().is_some_and(|outcome| outcome.allowed_before)
    {
        return Ok(());
    }
    if let Some(number) = number(departure, present)? {
        present.revoked = filter.revoke(number)?;
    }
    Ok(())
}

/// By force, whatever can be saved is saved: a disk that does not answer must not keep us.
fn flush(present: &Present, terms: Terms, deadline: Instant) -> Result<()> {
    let Some(disk) = &present.disk else { return Ok(()) };
    if !terms.force {
        return present.claim.as_ref().map_or(Ok(()), Claim::flush);
    }
    let patience = deadline.saturating_duration_since(Instant::now()) / 2;
    if let Err(error) = flush_within(disk, patience) {
        tracing::warn!("what was written last may be lost: {}", error.message());
    }
    Ok(())
}

/// A thread that is not back in time is left behind: it ends when the disk answers, or is gone.
fn flush_within(disk: &BlockDevice, patience: Duration) -> Result<()> {
    let (sender, result) = mpsc::sync_channel(1);
    let work = disk.clone();
    let flush = move || {
        // Nobody listens any more where it was given up.
        let _ = sender.send(work.write_back());
    };
    let thread = thread::Builder::new().name("block-volume-wb".to_owned()).spawn(flush);
    thread.map_err(Error::system("clone", "a thread"))?;
    let timed_out = || Err(Error::TimedOut { awaited: format!("a flush of {}", disk.name) });
    result.recv_timeout(patience).unwrap_or_else(|_| timed_out())
}

/// The directories that were made for the volume: the host knows, if it got our answer.
fn made_for(departure: &Departure, ticket: &Ticket) -> Vec<NodePath> {
    let attachment = &departure.attachment;
    match &departure.outcome {
        Some(outcome) => outcome.parents_made.clone(),
        None => ticket.made(&attachment.serial, &attachment.container_id, &attachment.path),
    }
}

/// Removes the directories that were made for the volume. The volume is gone, whatever comes of
/// this.
fn tidy(departure: &Departure, made: &[NodePath], deadline: Instant) {
    let Some(target) = departure.target.as_ref().filter(|target| !target.has_ended()) else {
        return;
    };
    if made.is_empty() {
        return;
    }
    if let Err(error) = remove_parents(target, made, deadline) {
        let path = departure.attachment.path.as_str();
        tracing::warn!("directories that were made for {path:?} stay: {}", error.message());
    }
}

/// Puts back what was taken from the containers that run. Goes on after an error.
fn restore(departures: &[Departure], all: &mut [Present], deadline: Instant) -> Vec<Error> {
    let back = |(departure, present)| restore_one(departure, present, deadline).err();
    let changed = departures.iter().zip(all).filter(|(_, present)| present.changed());
    changed.filter_map(back).collect()
}

fn restore_one(departure: &Departure, present: &mut Present, deadline: Instant) -> Result<()> {
    let (Some(target), Some(disk)) = (&departure.target, &present.disk) else { return Ok(()) };
    let mut back = || {
        if !present.revoked.is_empty() {
            Filter::of(target)?.allow(disk.number, present.revoked, &mut Grant::default())?;
        }
        if let (Some(options), Some(place)) = (present.removed, present.place.take()) {
            private_umask()?;
            let read_only = departure.attachment.access == Access::ReadOnly;
            let device = Device { number: disk.number, options, read_only };
            place
                .make(target, &departure.attachment.serial, device, deadline)?
                .publish(deadline)?;
        }
        Ok(())
    };
    match back() {
        // They went with it.
        Err(_) if target.has_ended() => Ok(()),
        result => result,
    }
}
