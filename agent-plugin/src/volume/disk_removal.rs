//! The disk's own part of a detach: it is flushed and deleted, each on a thread, since the kernel
//! may wait for a disk that does not answer.

use std::{
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use super::{busy::DetachPolicy, present::Present, queue::Ticket};
use crate::error::{Error, Result};

/// Writes back what the guest's caches hold. With force an error is logged, and a disk that does
/// not answer costs half of the remaining time.
pub(super) fn flush(present: &Present, policy: DetachPolicy, deadline: Instant) -> Result<()> {
    let Some(disk) = &present.disk else { return Ok(()) };
    let patience = deadline.saturating_duration_since(Instant::now());
    if !policy.force {
        let Some(claim) = &present.claim else { return Ok(()) };
        let claim = claim.try_clone()?;
        return within(patience, &format!("a flush of {}", disk.name), move || claim.flush());
    }
    let work = disk.clone();
    let flush = move || work.write_back();
    if let Err(error) = within(patience / 2, &format!("a flush of {}", disk.name), flush) {
        tracing::warn!("the last writes may be lost: {}", error.message());
    }
    Ok(())
}

/// Deletes the disk. A deletion that does not return by the deadline is the kernel's: nothing can
/// stop it, and the next request for the volume waits for its end.
pub(super) fn delete(present: &mut Present, ticket: &Ticket, deadline: Instant) -> Result<()> {
    let Some(device) = present.device else { return Ok(()) };
    // The claim is held until the device is gone: the disk cannot be mounted in between.
    let (claim, ticket, serial) = (present.claim.take(), ticket.clone(), present.serial.clone());
    let work = move || {
        let deleted = device.delete(&serial);
        if deleted.is_ok() {
            ticket.set_attached(&serial, false);
        }
        // The other parts of the rollback need the claim.
        Ok((deleted, claim))
    };
    present.deleted = true;
    let awaited = format!("the kernel to delete {device}, which is under way,");
    let patience = deadline.saturating_duration_since(Instant::now());
    let (deleted, claim) = within(patience, &awaited, work)?;
    present.deleted = deleted.is_ok();
    present.claim = claim.filter(|_| !present.deleted);
    deleted.map(drop)
}

/// Does `work` on a thread. One that does not return in time is abandoned: it ends when the disk
/// answers, or is gone.
fn within<T: Send + 'static>(
    patience: Duration,
    awaited: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, result) = mpsc::sync_channel(1);
    let run = move || {
        // The receiver is gone where the thread was abandoned.
        let _ = sender.send(work());
    };
    let thread = thread::Builder::new().name("block-volume-io".to_owned()).spawn(run);
    let thread = thread.map_err(Error::system("clone", "a thread"))?;
    match result.recv_timeout(patience) {
        Ok(result) => {
            // Nothing of it is left when the caller gets the reply.
            thread.join().map_err(|_| Error::Panicked)?;
            result
        }
        Err(RecvTimeoutError::Timeout) => Err(Error::TimedOut { awaited: awaited.to_owned() }),
        Err(RecvTimeoutError::Disconnected) => Err(Error::Panicked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_does_not_answer_costs_its_time_alone() {
        let (answer, answers) = mpsc::channel::<()>();
        let work = move || Ok(answers.recv().is_err());
        let error = within(Duration::ZERO, "a flush of sda", work).unwrap_err().to_string();
        assert_eq!(error, "timed out waiting for a flush of sda");
        drop(answer);
        assert_eq!(within(Duration::from_secs(10), "a flush of sda", || Ok(7)).unwrap(), 7);
        assert!(matches!(
            within(Duration::from_secs(10), "x", || -> Result<()> { panic!("a bug") }),
            Err(Error::Panicked)
        ));
    }
}
