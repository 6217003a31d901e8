//! The part of a detach that is about a mounted file system: written back, unmounted, and over.
//!
//! Without force nothing is unmounted that is in use: the holders were looked for before, and a
//! plain unmount fails where something was missed. When the last mount is gone the disk can be
//! claimed again, unless something that no mount namespace shows keeps the superblock.
//!
//! With force every mount is detached, whatever uses it, and a superblock that lives on is shut
//! down, so that it sends nothing more to the disk.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    attachment::{AccessMode, Attachment, Way},
    busy::{busy, claim, find_unexplained},
    disk_removal::within,
    failed::{Failed, OfVolume as _},
    job::DetachJob,
    mount::identity,
    patience::DetachPolicy,
    present::{LeftBehind, Present},
    tree::{Trees, check_time},
};
use crate::{
    block::{BlockDevice, Claim},
    error::{Error, Result},
    fault,
    file_system::{Kind, Source, Superblock},
    mounted::{unmount_everywhere, unmount_in},
};

/// How long a rollback waits for the end of a superblock, and a detach, which refuses then. How
/// often they look.
const END: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(250);
const INTERVAL: Duration = Duration::from_millis(5);

/// Writes back what is in memory of the file system. With force an error is reported with the
/// reply, and a disk that does not answer costs half of the remaining time.
pub(super) fn write_back(
    job: &DetachJob,
    present: &mut Present,
    policy: DetachPolicy,
    deadline: Instant,
) -> Result<()> {
    // One that can be claimed is not mounted. One that others use is written by them.
    if present.claim.is_some() || job.keep_disk {
        return Ok(());
    }
    let Some(disk) = &present.disk else { return Ok(()) };
    let (source, disk) = (source(job, disk), disk.clone());
    let kind = known_kind(job);
    let is_written = job.attachment.access == AccessMode::ReadWrite;
    let work = move || {
        let kind = kind.map_or_else(|| Kind::of(&disk.name, disk.number), Ok)?;
        let superblock = Superblock::reach(&source, kind)?;
        if is_written && fault::skips("write-back") {
            // As where the disk is removed first: what is in memory only is lost.
            return superblock.shut_down().map(drop);
        }
        superblock.write_back()
    };
    let patience = deadline.saturating_duration_since(Instant::now());
    let awaited = "the write back of the file system";
    if !policy.force {
        return within(patience, awaited, work);
    }
    if let Err(error) = within(patience / 2, awaited, work) {
        present.leave(job, "data, which may not all be written", &error);
    }
    Ok(())
}

/// Unmounts it in its container, and by force everywhere.
pub(super) fn unmount(
    job: &DetachJob,
    present: &mut Present,
    policy: DetachPolicy,
    trees: &mut Trees,
) -> Result<()> {
    if fault::skips("unmount") {
        return Ok(());
    }
    let attachment = &job.attachment;
    let identity = identity(attachment, &attachment.container_id, present.disk.as_ref());
    let everywhere = policy.force && !job.keep_disk;
    let mut result = Ok(());
    if let Some(target) = &job.target {
        let how = (policy.force, everywhere);
        let of = identity.clone();
        let unmount = move |until| unmount_in(target, of, how, until);
        match trees.ask(target, unmount) {
            Ok(done) => {
                present.unmounted |= done.count > 0;
                present.leave_all(done.left);
                if done.busy {
                    result = Err(in_use(present));
                }
            }
            Err(error) => {
                // It may be gone all the same.
                let is_late = error.is_time_out();
                (present.unmounted, present.uncertain) = (is_late, is_late);
                result = Err(error);
            }
        }
    }
    if everywhere {
        unmount_everywhere(&attachment.container_id.as_str().into(), &identity, trees.until());
    }
    match result {
        Err(error) if policy.force => {
            present.leave(job, "mount", &error);
            Ok(())
        }
        result => result,
    }
}

/// Waits until the file system of an attach that is rolled back is over: then its disk can be
/// deleted. What a process of the container has begun to use is shut down.
pub(super) fn await_end(attachment: &Attachment, disk: &BlockDevice, kind: Kind) -> Result<()> {
    let identity = identity(attachment, &attachment.container_id, Some(disk));
    let (source, disk) = (identity.source(&disk.name, disk.number), disk.clone());
    let work = move || {
        let is_over = || match disk.claim() {
            Ok(_) => Ok(true),
            Err(error) if matches!(*error, Error::Busy { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        if soon(END, is_over)? {
            return Ok(());
        }
        let superblock = Superblock::reach(&source, kind)?;
        superblock.write_back()?;
        superblock.shut_down().map(drop)
    };
    within(END * 2, "the end of the file system", work)
}

/// Asks until it is so, or the time is over. The last descriptor of a mount unmounts it, and a
/// child that the agent forks has copies of ours until it executes its program: nothing announces
/// its end.
fn soon(patience: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<bool> {
    let until = Instant::now() + patience;
    loop {
        if is_so()? {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        thread::sleep(INTERVAL);
    }
}

fn in_use(present: &Present) -> crate::error::BoxedError {
    let device = present.disk.as_ref().map(|disk| disk.name.clone()).unwrap_or_default();
    Error::Busy { device, holders: Vec::new() }.into()
}

/// Makes sure that no superblock is left, and claims each disk. With force it is shut down where it
/// lives on, which the reply says.
pub(super) fn end(
    jobs: &[DetachJob],
    all: &mut [Present],
    policy: DetachPolicy,
    deadline: Instant,
) -> Result<(), Failed> {
    let mut claimed = Vec::new();
    let of_disks = |(job, present): &(&DetachJob, &mut Present)| {
        job.is_mount() && !job.keep_disk && present.claim.is_none()
    };
    for (job, present) in jobs.iter().zip(all.iter_mut()).filter(of_disks) {
        check_time(deadline, "the end of the file system").of(&present.serial)?;
        // By force nothing is waited for.
        let patience = if policy.force { Duration::ZERO } else { SHORT };
        if soon(patience, || claim(present)).of(&job.attachment.serial)? {
            continue;
        }
        match policy.force {
            true => shut_down(job, present, deadline),
            false => claimed.push(present.serial.clone()),
        }
    }
    if claimed.is_empty() {
        return Ok(());
    }
    let holders = find_unexplained(jobs, all, &claimed, policy, deadline)?;
    Err(busy(all, holders))
}

/// Shuts down a superblock that lives on.
fn shut_down(job: &DetachJob, present: &mut Present, deadline: Instant) {
    let Some(disk) = present.disk.clone() else { return };
    let (source, kind) = (source(job, &disk), known_kind(job));
    let work = move || -> Result<(bool, Option<Claim>)> {
        let kind = kind.map_or_else(|| Kind::of(&disk.name, disk.number), Ok)?;
        let superblock = Superblock::reach(&source, kind)?;
        let is_shut_down = superblock.shut_down()?;
        drop(superblock);
        Ok((is_shut_down, disk.claim().ok()))
    };
    let patience = deadline.saturating_duration_since(Instant::now()) / 2;
    let reason = match within(patience, "the shutdown of the file system", work) {
        Ok((is_shut_down, claim)) => {
            present.shut_down = is_shut_down;
            present.claim = claim;
            if present.claim.is_some() {
                return;
            }
            match is_shut_down {
                true => "shut down".to_owned(),
                false => "without its disk".to_owned(),
            }
        }
        Err(error) => format!("not shut down: {}", error.message()),
    };
    present.left.push(LeftBehind {
        serial: present.serial.clone(),
        path: job.attachment.path.as_str().to_owned(),
        reason: format!(
            "its file system stays in the guest's memory, {reason}, and its device number taken, \
             until the processes end that use it"
        ),
    });
}

fn source(job: &DetachJob, disk: &BlockDevice) -> Source {
    let attachment = &job.attachment;
    identity(attachment, &attachment.container_id, Some(disk)).source(&disk.name, disk.number)
}

/// The type as it was recorded or requested. Else the superblock tells.
fn known_kind(job: &DetachJob) -> Option<Kind> {
    let recorded = job.outcome.as_ref().and_then(|outcome| match outcome.way {
        Way::Mount(mounted) => Some(mounted.kind),
        Way::Node(_) => None,
    });
    recorded.or_else(|| job.attachment.mount.as_ref()?.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_so_yet_is_asked_again_until_the_time_is_over() {
        let mut asked = 0;
        let third = || {
            asked += 1;
            Ok(asked == 3)
        };
        assert!(soon(END * 60, third).unwrap());
        assert_eq!(asked, 3);
        assert!(!soon(Duration::ZERO, || Ok(false)).unwrap());
        let failed = soon(END, || Err(Error::Panicked.into())).unwrap_err();
        assert!(matches!(*failed, Error::Panicked), "{failed}");
    }
}
