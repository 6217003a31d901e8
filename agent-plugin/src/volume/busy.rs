//! Holders of a disk that is to be detached: claims the disk, finds its holders, and waits until
//! they release it. Changes nothing.

use std::time::{Duration, Instant};

use super::{
    failed::{Failed, OfVolume as _},
    job::{DetachJob, distinct_targets},
    present::Present,
    queue::Ticket,
};
use crate::{
    error::{Error, Result},
    holder::Holder,
    holders::{self, Disk, Found, Scope, Waited, Watch},
    namespace::Target,
};

/// What a detach does where a disk has holders.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DetachPolicy {
    /// Detach anyway.
    pub(crate) force: bool,
    /// How long to wait for them.
    pub(crate) wait: Duration,
}

impl DetachPolicy {
    /// Whether the detach waits for holders.
    pub(crate) fn waits(self) -> bool {
        !self.wait.is_zero()
    }
}

/// Claims every disk that is to be detached and makes sure that it has no holder, as the policy
/// says. Returns the holders where the detach is forced.
pub(super) fn wait_until_free(
    jobs: &mut [DetachJob],
    all: &mut [Present],
    policy: DetachPolicy,
    ticket: &Ticket,
    deadline: Instant,
) -> Result<Vec<Holder>, Failed> {
    let until = deadline.min(Instant::now() + policy.wait);
    let mut found = claim_and_find(jobs, all)?;
    if !found.is_empty() && !policy.force && policy.waits() {
        // Its open files of /proc must not keep alive what is waited for.
        drop(std::mem::take(&mut found));
        found = wait(jobs, all, ticket, until)?;
    }
    let holders = holders_of(found);
    if policy.force || holders.is_empty() { Ok(holders) } else { Err(busy(all, holders)) }
}

/// Finds holders again, after the nodes and the access were removed: those that came since. A disk
/// that we claimed cannot have been claimed by others.
pub(super) fn find_late_holders(jobs: &[DetachJob], all: &[Present]) -> Result<Vec<Holder>> {
    let scope = if jobs.iter().any(|job| job.keep_disk) { Scope::All } else { Scope::Opened };
    find(jobs, all, scope).map(holders_of)
}

/// The error that names the holders.
pub(super) fn busy(all: &[Present], holders: Vec<Holder>) -> Failed {
    let serial = holders.first().map(|holder| holder.serial.clone());
    let disk = all.iter().find(|present| Some(&present.serial) == serial.as_ref());
    let device = disk.and_then(|present| present.disk.as_ref()).map(|disk| disk.name.clone());
    let error = Error::Busy { device: device.unwrap_or_default(), holders };
    Failed { serial, ..Failed::from(error) }
}

fn holders_of(found: Vec<Found>) -> Vec<Holder> {
    found.into_iter().map(|found| found.holder).collect()
}

fn wait(
    jobs: &mut [DetachJob],
    all: &mut [Present],
    ticket: &Ticket,
    until: Instant,
) -> Result<Vec<Found>, Failed> {
    let mut watch = Watch::new()?;
    for present in &*all {
        tracing::info!("waiting for the holders of volume {}", present.serial);
    }
    loop {
        // A container may mount its disk in the meantime: a claim of ours would prevent that.
        all.iter_mut().for_each(|present| present.claim = None);
        // Our handles of a container that has ended would keep its mounts alive.
        let ended = |target: &mut Target| target.has_ended();
        jobs.iter_mut().for_each(|job| drop(job.target.take_if(ended)));
        let found = claim_and_find(jobs, all)?;
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

fn claim_and_find(jobs: &[DetachJob], all: &mut [Present]) -> Result<Vec<Found>, Failed> {
    let mut claimed = Vec::new();
    for (job, present) in jobs.iter().zip(all.iter_mut()).filter(|(job, _)| !job.keep_disk) {
        if !claim(present).of(&job.attachment.serial)? {
            claimed.push(present.serial.clone());
        }
    }
    let keeps = jobs.iter().any(|job| job.keep_disk);
    let scope = if claimed.is_empty() && !keeps { Scope::Opened } else { Scope::All };
    let mut found = find(jobs, all, scope)?;
    let disks = disks(jobs, all)?;
    let claimed = disks.iter().filter(|disk| claimed.contains(&disk.serial));
    holders::add_unknown(&mut found, claimed);
    Ok(found)
}

/// Claims a disk. `false`: it is claimed by another.
fn claim(present: &mut Present) -> Result<bool> {
    let Some(disk) = &present.disk else { return Ok(true) };
    match disk.claim() {
        Ok(claim) => present.claim = Some(claim),
        Err(Error::Busy { .. }) => return Ok(false),
        // QEMU removed it in the meantime.
        Err(_) if !disk.device.exists() => (present.device, present.disk) = (None, None),
        Err(error) => return Err(error),
    }
    Ok(true)
}

fn find(jobs: &[DetachJob], all: &[Present], scope: Scope) -> Result<Vec<Found>> {
    let containers = distinct_targets(jobs.iter().filter_map(|job| job.target.as_ref()));
    let mut found = holders::find(&disks(jobs, all)?, &containers, scope)?;
    // A disk that stays is used by other containers as well.
    found.retain(|found| {
        let mut of_disk = jobs.iter().filter(|job| job.attachment.serial == found.holder.serial);
        of_disk
            .any(|job| !job.keep_disk || job.attachment.container_id == found.holder.container_id)
    });
    Ok(found)
}

fn disks(jobs: &[DetachJob], all: &[Present]) -> Result<Vec<Disk>> {
    let disk = |(job, present): (&DetachJob, &Present)| {
        let attachment = &job.attachment;
        let disk = present.disk.as_ref()?;
        Some(Disk::new(&attachment.serial, attachment.path.as_str(), disk))
    };
    jobs.iter().zip(all).filter_map(disk).collect()
}
