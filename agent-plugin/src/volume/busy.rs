//! Holders of a disk that is to be detached: claims the disk, finds its holders, and waits until
//! they release it. Changes nothing.

use std::time::{Duration, Instant};

use super::{
    attachment::Attachment,
    failed::{Failed, OfVolume as _},
    job::{DetachJob, distinct_targets},
    mount,
    patience::{DetachPolicy, Patience},
    present::Present,
    queue::Ticket,
};
use crate::{
    block::BlockDevice,
    error::{Error, Result},
    fault,
    holder::Holder,
    holders::{self, Disk, Found, OwnMount, Scan, Scope, Waited, Watch},
    inode::Inode,
    log,
    namespace::Target,
    procfs::mountinfo::MountLine,
};

/// Claims every disk that is to be detached and makes sure that it has no holder, as the policy
/// says. Returns the holders where the detach is forced.
pub(super) fn wait_until_free(
    jobs: &mut [DetachJob],
    all: &mut [Present],
    policy: DetachPolicy,
    ticket: &Ticket,
    deadline: Instant,
) -> Result<Vec<Holder>, Failed> {
    let patience = policy.patience(deadline);
    let mut found = claim_and_find(jobs, all, policy, deadline)?;
    if patience.with(&found).is_some() {
        // Its open files of /proc must not keep alive what is waited for.
        drop(std::mem::take(&mut found));
        found = wait(jobs, all, policy, ticket, (patience, deadline))?;
    }
    let holders = holders_of(found);
    if policy.force || holders.is_empty() { Ok(holders) } else { Err(busy(all, holders)) }
}

/// Finds holders again, after the nodes and the access were removed: those that came since, and
/// stay for longer than a grace period. A disk that we claimed cannot have been claimed by others.
pub(super) fn find_late_holders(
    jobs: &[DetachJob],
    all: &[Present],
    policy: DetachPolicy,
    ticket: &Ticket,
    deadline: Instant,
) -> Result<Vec<Holder>> {
    let scope = if jobs.iter().any(|job| job.keep_disk) { Scope::All } else { Scope::Opened };
    let find = || policy.known(find(jobs, all, scope, policy.scans_until(deadline))?);
    let mut found = find()?;
    // The container has lost the volume already: no other holder is waited for.
    let patience = DetachPolicy { wait: Duration::ZERO, ..policy }.patience(deadline);
    if patience.with(&found).is_none() {
        return Ok(holders_of(found));
    }
    let mut watch = begin_wait(all)?;
    loop {
        found = find()?;
        let Some(until) = patience.with(&found) else { return Ok(holders_of(found)) };
        if watch.wait(&found, until, ticket.cancelled())? == Waited::Cancelled {
            return Err(Error::Cancelled.into());
        }
    }
}

/// The error that names the holders.
pub(super) fn busy(all: &[Present], holders: Vec<Holder>) -> Failed {
    let serial = holders.first().map(|holder| holder.serial.clone());
    let disk = all.iter().find(|present| Some(&present.serial) == serial.as_ref());
    let device = disk.and_then(|present| present.disk.as_ref()).map(|disk| disk.name.clone());
    let error = Error::Busy { device: device.unwrap_or_default(), holders };
    let mut failed = Failed::from(error);
    failed.serial = serial;
    failed
}

fn holders_of(found: Vec<Found>) -> Vec<Holder> {
    let mut holders = Vec::with_capacity(found.len());
    for found in found {
        holders.push(found.holder);
    }
    holders
}

fn begin_wait(all: &[Present]) -> Result<Watch> {
    for present in all {
        log::info(format_args!("waiting for the holders of volume {}", present.serial));
    }
    Watch::new()
}

fn wait(
    jobs: &mut [DetachJob],
    all: &mut [Present],
    policy: DetachPolicy,
    ticket: &Ticket,
    (patience, deadline): (Patience, Instant),
) -> Result<Vec<Found>, Failed> {
    let mut watch = begin_wait(all)?;
    loop {
        // A container may mount its disk in the meantime: a claim of ours would prevent that.
        all.iter_mut().for_each(|present| present.claim = None);
        // Our handles of a container that has ended would keep its mounts alive.
        let ended = |target: &mut Target| target.has_ended();
        jobs.iter_mut().for_each(|job| drop(job.target.take_if(ended)));
        let found = claim_and_find(jobs, all, policy, deadline)?;
        let Some(until) = patience.with(&found) else { return Ok(found) };
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
    let mut is_mounted = false;
    for (job, present) in jobs.iter().zip(all.iter_mut()).filter(|(job, _)| !job.keep_disk) {
        match claim(present).of(&job.attachment.serial)? {
            true => {}
            // By its own mount, as far as is known yet.
            false if job.is_mount() => is_mounted = true,
            false => claimed.push(present.serial.clone()),
        }
    }
    let keeps = jobs.iter().any(|job| job.keep_disk);
    let is_free = claimed.is_empty() && !is_mounted && !keeps;
    let scope = if is_free { Scope::Opened } else { Scope::All };
    let mut scan = find(jobs, all, scope, policy.scans_until(deadline))?;
    let disks = disks(jobs, all)?;
    let claimed = disks.iter().filter(|disk| claimed.contains(&disk.serial));
    holders::add_unknown(scan.found_mut(), claimed);
    Ok(policy.known(scan)?)
}

/// Claims a disk. `false`: it is claimed by another.
pub(super) fn claim(present: &mut Present) -> Result<bool> {
    let Some(disk) = &present.disk else { return Ok(true) };
    match disk.claim() {
        Ok(claim) => present.claim = Some(claim),
        Err(error) if matches!(*error, Error::Busy { .. }) => return Ok(false),
        // QEMU removed it in the meantime.
        Err(_) if !disk.device.exists() => (present.device, present.disk) = (None, None),
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Finds holders of disks that are claimed, although nothing has them mounted any more.
pub(super) fn find_unexplained(
    jobs: &[DetachJob],
    all: &[Present],
    claimed: &[String],
    policy: DetachPolicy,
    deadline: Instant,
) -> Result<Vec<Holder>> {
    let mut scan = find(jobs, all, Scope::All, policy.scans_until(deadline))?;
    let disks = disks(jobs, all)?;
    let claimed = disks.iter().filter(|disk| claimed.contains(&disk.serial));
    // Of one that is mounted again, each holder explains it.
    let found = scan.found_mut();
    for disk in claimed {
        if !found.iter().any(|found| found.holder.serial == disk.serial) {
            found.push(Found::unknown(disk));
        }
    }
    Ok(holders_of(scan.found()))
}

fn find(jobs: &[DetachJob], all: &[Present], scope: Scope, until: Instant) -> Result<Scan> {
    let containers = distinct_targets(jobs.iter().filter_map(|job| job.target.as_ref()));
    let mut scan = holders::find(&disks(jobs, all)?, &containers, scope, until)?;
    // A disk that stays is used by other containers as well.
    let counts = |found: &Found| {
        let mut of_disk = jobs.iter().filter(|job| job.attachment.serial == found.holder.serial);
        of_disk
            .any(|job| !job.keep_disk || job.attachment.container_id == found.holder.container_id)
    };
    scan.found_mut().retain(counts);
    Ok(scan)
}

/// A disk whose holders are to be found. Of a mount these are those of its file system, too.
pub(super) fn disk_of(
    attachment: &Attachment,
    target: Option<&Target>,
    disk: &BlockDevice,
) -> Result<Disk> {
    let found = Disk::new(&attachment.serial, attachment.path.as_str(), disk)?;
    if attachment.mount.is_none() {
        return Ok(found);
    }
    let identity = mount::identity(attachment, &attachment.container_id, Some(disk));
    let mut numbers = vec![disk.number];
    let namespace = target.and_then(|target| {
        // A file system with numbers of its own shows them to whoever looks at its files.
        let text = target.mountinfo().unwrap_or_default();
        let of_volume = |line: &MountLine<'_>| identity.is_of_volume(line);
        numbers.extend(MountLine::all(&text).filter(of_volume).map(|line| line.number));
        let root = target.root().ok();
        let root = root.and_then(|root| root.existing(attachment.path.as_str()).ok()?);
        if let Some(found) = root.and_then(|root| Inode::of(&root).ok())
            && MountLine::all(&text)
                .any(|line| u64::from(line.id) == found.mount && identity.is_shown_by(&line))
        {
            numbers.push(found.file_system);
        }
        Inode::of(&target.container.mount_namespace).ok().map(|inode| inode.number)
    });
    if fault::skips("files") {
        numbers.clear();
    }
    Ok(found.mounted(OwnMount { identity, namespace, numbers }))
}

fn disks(jobs: &[DetachJob], all: &[Present]) -> Result<Vec<Disk>> {
    let mut disks = Vec::with_capacity(all.len());
    for (job, present) in jobs.iter().zip(all) {
        if let Some(disk) = &present.disk {
            disks.push(disk_of(&job.attachment, job.target.as_ref(), disk)?);
        }
    }
    Ok(disks)
}
