//! Detach of an idle volume: claim, unlink, revoke, flush, delete. What is not there any more is no error.

use std::time::Instant;

use super::{Attachment, Departure, Detached, Failed, OfVolume as _, Stages, Ticket};
use crate::{
    block::{self, BlockDevice, Claim, DeviceNumber},
    cgroup::Filter,
    device_node::Place,
    error::{Error, Result, Unsupported},
    namespace::Target,
    scsi::{ScsiDevice, ScsiHost},
    sysfs,
};

/// What is there of one volume.
#[derive(Debug, Default)]
struct Found {
    /// With our serial; it may have no name yet.
    device: Option<ScsiDevice>,
    disk: Option<BlockDevice>,
    place: Option<Place>,
    claim: Option<Claim>,
    changed: bool,
}

/// Detaches all volumes. If one is busy, nothing is changed; after a later failure, a repetition goes on from there.
pub(crate) fn detach(
    departures: &[Departure],
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
) -> Result<Vec<Detached>, Failed> {
    ticket.turn(deadline)?;
    let mut all = Vec::with_capacity(departures.len());
    let result = sequence(departures, ticket, deadline, stages, &mut all);
    result.map_err(|failed| Failed { partial: all.iter().any(|found| found.changed), ..failed })?;
    let detached = |(departure, found): (&Departure, &Found)| Detached {
        serial: departure.attachment.serial.clone(),
        unchanged: !found.changed,
    };
    Ok(departures.iter().zip(&all).map(detached).collect())
}

fn sequence(
    departures: &[Departure],
    ticket: &Ticket,
    deadline: Instant,
    stages: &mut Stages,
    all: &mut Vec<Found>,
) -> Result<(), Failed> {
    let hosts = ScsiHost::all()?;
    for departure in departures {
        let serial = &departure.attachment.serial;
        all.push(look_up(departure, &hosts, deadline).of(serial)?);
    }
    stages.end("lookup")?;

    for (departure, found) in departures.iter().zip(all.iter_mut()) {
        if !departure.keep_disk {
            claim(found).of(&departure.attachment.serial)?;
        }
    }
    stages.end("claim")?;

    for (departure, found) in departures.iter().zip(all.iter_mut()) {
        unlink(departure, found).of(&departure.attachment.serial)?;
    }
    stages.end("unlink")?;

    for (departure, found) in departures.iter().zip(all.iter_mut()) {
        revoke(departure, found).of(&departure.attachment.serial)?;
    }
    stages.end("revoke")?;

    for (departure, found) in departures.iter().zip(all.iter_mut()) {
        found.claim.as_ref().map_or(Ok(()), Claim::flush).of(&departure.attachment.serial)?;
    }
    stages.end("flush")?;

    for (departure, found) in
        departures.iter().zip(all.iter_mut()).filter(|(departure, _)| !departure.keep_disk)
    {
        if let Some(device) = found.device {
            // The claim is held until the device is gone: nobody can mount it in between.
            device.delete().of(&departure.attachment.serial)?;
            found.changed = true;
            found.claim = None;
        }
        ticket.set_attached(&departure.attachment.serial, false);
    }
    Ok(stages.end("delete")?)
}

fn look_up(departure: &Departure, hosts: &[ScsiHost], deadline: Instant) -> Result<Found> {
    let attachment = &departure.attachment;
    let mut found = Found::default();
    // Without the controller there is no disk either.
    for host in ScsiHost::candidates(hosts, attachment.controller.as_deref()).unwrap_or_default() {
        let device = host.device(attachment.address);
        if block::serial(device)?.as_ref() == Some(&attachment.serial) {
            found.device = Some(device);
            found.disk = BlockDevice::at(device)?;
        }
    }
    if let Some(target) = &departure.target {
        found.place = match place(target, attachment, deadline) {
            Ok(place) => Some(place),
            // There is no way to such a path, so no node of ours is there.
            Err(Error::ParentMissing { .. } | Error::Unsupported(Unsupported::MagicLink { .. })) => None,
            Err(Error::ContainerEnded { .. }) => None,
            Err(error) => return Err(error),
        };
    }
    Ok(found)
}

fn place(target: &Target, attachment: &Attachment, deadline: Instant) -> Result<Place> {
    let path = attachment.path.clone();
    target.enter(move |root| Place::find(root, &path))?.finish(deadline)
}

/// The number of the container's node. Where the disk is gone, its number may be another disk's by now.
fn number(departure: &Departure, found: &Found) -> Result<Option<DeviceNumber>> {
    if let Some(disk) = &found.disk {
        return Ok(Some(disk.number));
    }
    let Some(outcome) = departure.outcome else { return Ok(None) };
    let taken = sysfs::exists(&format!("/sys/dev/block/{}", outcome.device));
    Ok((!taken).then_some(outcome.device))
}

fn claim(found: &mut Found) -> Result<()> {
    let Some(disk) = &found.disk else { return Ok(()) };
    match disk.claim() {
        Ok(claim) => found.claim = Some(claim),
        Err(Error::Busy { device }) => return Err(Error::Busy { device }),
        // QEMU took it away meanwhile.
        Err(_) if !disk.device.exists() => (found.device, found.disk) = (None, None),
        Err(error) => return Err(error),
    }
    Ok(())
}

fn unlink(departure: &Departure, found: &mut Found) -> Result<()> {
    let number = number(departure, found)?;
    let Some(place) = &found.place else { return Ok(()) };
    found.changed |= match place.remove_leftover(&departure.attachment.serial) {
        // The container has something of its own under that name: not ours to remove.
        Err(Error::PathTaken { .. }) => false,
        result => result?,
    };
    if let Some(number) = number {
        found.changed |= place.remove(number)?;
    }
    Ok(())
}

fn revoke(departure: &Departure, found: &mut Found) -> Result<()> {
    let Some(target) = departure.target.as_ref().filter(|target| !target.has_ended()) else { return Ok(()) };
    if departure.outcome.is_some_and(|outcome| outcome.allowed_before) {
        return Ok(());
    }
    if let Some(number) = number(departure, found)? {
        found.changed |= Filter::of(target)?.revoke(number)?;
    }
    Ok(())
}
