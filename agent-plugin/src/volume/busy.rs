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
    holders::{self, Disk, Found, Scan, Scope, Waited, Watch},
    namespace::Target,
    text::shown,
};

/// How long a scan for holders that lose the disk anyway may take.
const LONGEST_FORCED_SCAN: Duration = Duration::from_secs(2);

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

    /// When a scan that begins now has to end. A container can make a scan as long as it likes, and
    /// what follows needs time, too: another scan and, where that does not end, the rollback. With
    /// force a scan only supplies names, and gets a small part.
    fn scans_until(self, deadline: Instant) -> Instant {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        now + if self.force { (left / 4).min(LONGEST_FORCED_SCAN) } else { left / 2 }
    }

    /// What a scan found. With force that is enough, complete or not.
    fn known(self, scan: Scan) -> Result<Vec<Found>> {
        if !self.force {
            return scan.certain();
        }
        if let Scan::Partial(_, cost) = &scan {
            let cost = shown(&cost.to_string());
            tracing::warn!("not every process was looked at before a forced detach{cost}");
        }
        Ok(scan.found())
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
    let mut found = claim_and_find(jobs, all, policy, deadline)?;
    if !found.is_empty() && !policy.force && policy.waits() {
        // Its open files of /proc must not keep alive what is waited for.
        drop(std::mem::take(&mut found));
        found = wait(jobs, all, policy, ticket, (until, deadline))?;
    }
    let holders = holders_of(found);
    if policy.force || holders.is_empty() { Ok(holders) } else { Err(busy(all, holders)) }
}

/// Finds holders again, after the nodes and the access were removed: those that came since. A disk
/// that we claimed cannot have been claimed by others.
pub(super) fn find_late_holders(
    jobs: &[DetachJob],
    all: &[Present],
    policy: DetachPolicy,
    deadline: Instant,
) -> Result<Vec<Holder>> {
    let scope = if jobs.iter().any(|job| job.keep_disk) { Scope::All } else { Scope::Opened };
    let scan = find(jobs, all, scope, policy.scans_until(deadline))?;
    policy.known(scan).map(holders_of)
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
    policy: DetachPolicy,
    ticket: &Ticket,
    (until, deadline): (Instant, Instant),
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
        let found = claim_and_find(jobs, all, policy, deadline)?;
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

fn claim_and_find(
    jobs: &[DetachJob],
    all: &mut [Present],
    policy: DetachPolicy,
    deadline: Instant,
) -> Result<Vec<Found>, Failed> {
    let mut claimed = Vec::new();
    for (job, present) in jobs.iter().zip(all.iter_mut()).filter(|(job, _)| !job.keep_disk) {
        if !claim(present).of(&job.attachment.serial)? {
            claimed.push(present.serial.clone());
        }
    }
    let keeps = jobs.iter().any(|job| job.keep_disk);
    let scope = if claimed.is_empty() && !keeps { Scope::Opened } else { Scope::All };
    let scan = find(jobs, all, scope, policy.scans_until(deadline))?;
    let disks = disks(jobs, all)?;
    let claimed = disks.iter().filter(|disk| claimed.contains(&disk.serial));
    let scan = scan.map(|mut found| {
        holders::add_unknown(&mut found, claimed);
        found
    });
    Ok(policy.known(scan)?)
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

fn find(jobs: &[DetachJob], all: &[Present], scope: Scope, until: Instant) -> Result<Scan> {
    let containers = distinct_targets(jobs.iter().filter_map(|job| job.target.as_ref()));
    let scan = holders::find(&disks(jobs, all)?, &containers, scope, until)?;
    // A disk that stays is used by other containers as well.
    let counts = |found: &Found| {
        let mut of_disk = jobs.iter().filter(|job| job.attachment.serial == found.holder.serial);
        of_disk
            .any(|job| !job.keep_disk || job.attachment.container_id == found.holder.container_id)
    };
    Ok(scan.map(|found| found.into_iter().filter(counts).collect()))
}

fn disks(jobs: &[DetachJob], all: &[Present]) -> Result<Vec<Disk>> {
    let disk = |(job, present): (&DetachJob, &Present)| {
        let attachment = &job.attachment;
        let disk = present.disk.as_ref()?;
        Some(Disk::new(&attachment.serial, attachment.path.as_str(), disk))
    };
    jobs.iter().zip(all).filter_map(disk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_leaves_time_for_what_follows() {
        let hour = Duration::from_secs(3600);
        let deadline = Instant::now() + hour;
        let slice = |force| {
            let policy = DetachPolicy { force, wait: Duration::ZERO };
            policy.scans_until(deadline).saturating_duration_since(Instant::now())
        };
        assert!(slice(false) <= hour / 2 && slice(false) > hour / 3);
        assert!(slice(true) <= LONGEST_FORCED_SCAN);
        let short = DetachPolicy { force: true, wait: Duration::ZERO };
        let deadline = Instant::now() + Duration::from_secs(4);
        assert!(short.scans_until(deadline) < deadline - Duration::from_secs(2));
    }
}
