//! Before a disk goes: who holds it, and the wait until they let go. Changes nothing.

use std::time::{Duration, Instant};

use super::{Departure, Failed, OfVolume as _, Ticket, detach::Present, distinct_targets};
use crate::{
    error::{Error, Result},
    holders::{self, Disk, Found, Holder, Scope, Waited, Watch},
    namespace::Target,
};

/// How a detach deals with those who hold a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Goes on all the same.
    pub(crate) force: bool,
    /// How long they may take to let go.
    pub(crate) wait: Duration,
}

/// Claims every disk that is to go, and makes sure that nobody holds one, as the terms are. Returns
/// who does, where that is fine.
pub(super) fn release(
    departures: &mut [Departure],
    all: &mut [Present],
    terms: Terms,
    ticket: &Ticket,
    deadline: Instant,
) -> Result<Vec<Holder>, Failed> {
    let until = deadline.min(Instant::now() + terms.wait);
    let mut held = claim_and_look(departures, all)?;
    if !held.is_empty() && !terms.force && !terms.wait.is_zero() {
        // What it looked at must not be kept alive by us meanwhile.
        drop(std::mem::take(&mut held));
        held = wait(departures, all, ticket, until)?;
    }
    let held = named(held);
    if terms.force || held.is_empty() { Ok(held) } else { Err(busy(all, held)) }
}

/// Looks again, after the nodes and the rights are gone: who slipped in since. Nobody can have
/// claimed a disk that we did.
pub(super) fn look_again(departures: &[Departure], all: &[Present]) -> Result<Vec<Holder>> {
    let scope = if departures.iter().any(|departure| departure.keep_disk) {
        Scope::All
    } else {
        Scope::Opened
    };
    look(departures, all, scope).map(named)
}

/// The error that names them.
pub(super) fn busy(all: &[Present], holders: Vec<Holder>) -> Failed {
    let serial = holders.first().map(|holder| holder.serial.clone());
    let disk = all.iter().find(|present| Some(&present.serial) == serial.as_ref());
    let device = disk.and_then(|present| present.disk.as_ref()).map(|disk| disk.name.clone());
    let error = Error::Busy { device: device.unwrap_or_default(), holders };
    Failed { serial, ..Failed::from(error) }
}

fn named(found: Vec<Found>) -> Vec<Holder> {
    found.into_iter().map(|found| found.holder).collect()
}

fn wait(
    departures: &mut [Departure],
    all: &mut [Present],
    ticket: &Ticket,
    until: Instant,
) -> Result<Vec<Found>, Failed> {
    let mut watch = Watch::new()?;
    for present in &*all {
        tracing::info!("waits for those who hold volume {}", present.serial);
    }
    loop {
        // A container may mount its disk meanwhile: a claim of ours would keep it from that.
        all.iter_mut().for_each(|present| present.claim = None);
        // Our handles of a container that has ended would keep its mounts alive.
        let ended = |target: &mut Target| target.has_ended();
        departures.iter_mut().for_each(|departure| drop(departure.target.take_if(ended)));
        let found = claim_and_look(departures, all)?;
        if found.is_empty() {
            return Ok(found);
        }
        all.iter_mut().for_each(|present| present.claim = None);
        match watch.wait(&found, until, ticket.cancelled())? {
            Waited::Changed => {}
            Waited::TimedOut => return Ok(found),
            Waited::Cancelled => return Err(Error::Cancelled.into()),
        }
    }
}

fn claim_and_look(departures: &[Departure], all: &mut [Present]) -> Result<Vec<Found>, Failed> {
    let mut claimed = Vec::new();
    for (departure, present) in
        departures.iter().zip(all.iter_mut()).filter(|(it, _)| !it.keep_disk)
    {
        if !claim(present).of(&departure.attachment.serial)? {
            claimed.push(present.serial.clone());
        }
    }
    let keeps = departures.iter().any(|departure| departure.keep_disk);
    let scope = if claimed.is_empty() && !keeps { Scope::Opened } else { Scope::All };
    let mut found = look(departures, all, scope)?;
    let disks = disks(departures, all)?;
    let claimed = disks.iter().filter(|disk| claimed.contains(&disk.serial));
    holders::add_unknown(&mut found, claimed);
    Ok(found)
}

/// `false`: somebody else claims it.
fn claim(present: &mut Present) -> Result<bool> {
    let Some(disk) = &present.disk else { return Ok(true) };
    match disk.claim() {
        Ok(claim) => present.claim = Some(claim),
        Err(Error::Busy { .. }) => return Ok(false),
        // QEMU took it away meanwhile.
        Err(_) if !disk.device.exists() => (present.device, present.disk) = (None, None),
        Err(error) => return Err(error),
    }
    Ok(true)
}

fn look(departures: &[Departure], all: &[Present], scope: Scope) -> Result<Vec<Found>> {
    let known =
        distinct_targets(departures.iter().filter_map(|departure| departure.target.as_ref()));
    let mut found = holders::look(&disks(departures, all)?, &known, scope)?;
    // A disk that stays is used by other containers as well.
    found.retain(|found| {
        let mut of_disk =
            departures.iter().filter(|it| it.attachment.serial == found.holder.serial);
        of_disk.any(|it| !it.keep_disk || it.attachment.container_id == found.holder.container_id)
    });
    Ok(found)
}

fn disks(departures: &[Departure], all: &[Present]) -> Result<Vec<Disk>> {
    let disk = |(departure, present): (&Departure, &Present)| {
        let attachment = &departure.attachment;
        let disk = present.disk.as_ref()?;
        Some(Disk::new(&attachment.serial, attachment.path.as_str(), disk))
    };
    departures.iter().zip(all).filter_map(disk).collect()
}
