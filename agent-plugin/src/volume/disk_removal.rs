//! The disk's own part of a detach: it is flushed, quiesced and deleted, each on a thread, since
//! the kernel may wait for a disk that does not answer.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{patience::DetachPolicy, present::Present, queue::Ticket, tree::check_time};
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    log,
    scsi::ScsiDevice,
    sysfs,
    thread::Thread,
    uevent::{Received, UeventSocket},
    worker::Worker,
};

/// Writes back what the guest's caches hold. With force an error is logged, and a disk that does
/// not answer costs half of the remaining time.
pub(super) fn flush(present: &Present, policy: DetachPolicy, deadline: Instant) -> Result<()> {
    let disk = present.disk.as_ref().filter(|_| !present.shut_down);
    let Some(disk) = disk else { return Ok(()) };
    let patience = deadline.saturating_duration_since(Instant::now());
    if !policy.force {
        let Some(claim) = &present.claim else { return Ok(()) };
        let claim = claim.try_clone()?;
        return within(patience, &format!("a flush of {}", disk.name), move || claim.flush());
    }
    let work = disk.clone();
    let flush = move || work.write_back();
    if let Err(error) = within(patience / 2, &format!("a flush of {}", disk.name), flush) {
        log::warn(format_args!("the last writes may be lost: {}", error.message()));
    }
    Ok(())
}

/// Makes the kernel send no further commands to the disk: when it removes a disk whose cache is
/// written back, it flushes it once more, and by then QEMU may have removed it. `false`: it could
/// not be told so.
pub(super) fn quiesce(present: &mut Present, deadline: Instant) -> Result<bool> {
    let Some(device) = present.device else { return Ok(true) };
    let Some(claim) = &present.claim else { return Ok(false) };
    let claim = claim.try_clone()?;
    let work = move || {
        // For what a process has written since the first flush that was not seen, as it has closed
        // the disk again.
        claim.flush()?;
        check_time(deadline, "the release of the disk")?;
        Ok(device.replace_cache("write through"))
    };
    let patience = deadline.saturating_duration_since(Instant::now());
    let result = within(patience, &format!("the last flush of {device}"), work);
    present.uncertain |= result.as_ref().is_err_and(|error| error.is_time_out());
    match result? {
        Ok(before) => present.quiesced = Some(Quiesced { device, before }),
        Err(error) => {
            log::info(format_args!("{device} is removed before QEMU's disk: {}", error.message()))
        }
    }
    Ok(present.quiesced.is_some())
}

/// A disk that is not flushed any more. Dropping it restores the flushes, also after a panic: who
/// uses the disk again relies on them.
#[derive(Debug)]
pub(super) struct Quiesced {
    device: ScsiDevice,
    /// What the kernel took its cache for. Empty: the disk goes.
    before: String,
}

impl Quiesced {
    /// The disk goes: at its address there may be another one soon.
    pub(super) fn disarm(&mut self) {
        self.before.clear();
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        let Quiesced { device, before } = self;
        if !before.is_empty()
            && let Err(error) = device.replace_cache(before)
        {
            log::warn(format_args!("{device} is not flushed any more: {}", error.message()));
        }
    }
}

/// Deletes the disk. A deletion that does not return by the deadline is the kernel's: nothing can
/// stop it, and the next request for the volume waits for its end.
pub(super) fn delete(present: &mut Present, ticket: &Ticket, deadline: Instant) -> Result<()> {
    let Some(device) = present.device else { return Ok(()) };
    // The claim is held until the device is gone: the disk cannot be mounted in between.
    let (claim, ticket, serial) = (present.claim.take(), ticket.clone(), present.serial.clone());
    // While it is claimed, its number is not used for another disk.
    let disk = claim.as_ref().and(present.disk.as_ref()).map(|disk| disk.number);
    let work = move || {
        let deleted = device.delete(&serial).and_then(|gone| match disk.filter(|_| gone) {
            Some(number) => await_end(number, deadline),
            None => Ok(()),
        });
        if deleted.is_ok() {
            ticket.set_attached(&serial, false);
        }
        // The other parts of the rollback need the claim.
        Ok((deleted, claim))
    };
    let is_released = std::mem::replace(&mut present.deleted, true);
    let awaited = format!("the kernel to delete {device}, which is under way,");
    let patience = deadline.saturating_duration_since(Instant::now());
    let (deleted, claim) = within(patience, &awaited, work)?;
    present.deleted = is_released || deleted.is_ok();
    if let Some(quiesced) = present.quiesced.as_mut().filter(|_| present.deleted) {
        quiesced.disarm();
    }
    present.claim = claim.filter(|_| !present.deleted);
    deleted
}

/// Waits for the end of a disk whose deletion has begun. It may be another's: the kernel begins one
/// when QEMU reports that it has removed the disk, and ours finds nothing to do then.
fn await_end(number: DeviceNumber, deadline: Instant) -> Result<()> {
    let link = format!("/sys/dev/block/{number}");
    if !sysfs::exists(&link) {
        return Ok(());
    }
    let mut socket = UeventSocket::open()?;
    // The kernel removes the link before it reports the removal.
    while sysfs::exists(&link) {
        check_time(deadline, "the end of the disk")?;
        if socket.receive()? != Received::Nothing {
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::system("poll", &"the uevent socket")(errno)),
        }
    }
    Ok(())
}

/// Does `work` on a thread. One that does not return in time is abandoned: it ends when the disk
/// answers, or is gone.
pub(super) fn within<T: Send + 'static>(
    patience: Duration,
    awaited: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let worker = Worker::start(Thread::Disk, work)?;
    if !worker.ends_within(patience) {
        return Err(Error::TimedOut { awaited: awaited.to_owned() }.into());
    }
    // Nothing of it is left when the caller gets the reply.
    worker.join()?
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_disk_that_does_not_answer_costs_its_time_alone() {
        let (answer, answers) = mpsc::channel::<()>();
        let work = move || Ok(answers.recv().is_err());
        let error = within(Duration::ZERO, "a flush of sda", work).unwrap_err().to_string();
        assert_eq!(error, "timed out waiting for a flush of sda");
        drop(answer);
        assert_eq!(within(Duration::from_secs(10), "a flush of sda", || Ok(7)).unwrap(), 7);
        let panics = || -> Result<()> { panic!("a bug") };
        let error = within(Duration::from_secs(10), "x", panics).unwrap_err();
        assert!(matches!(*error, Error::Panicked));
    }
}
