//! What ends a request early: its deadline, the end of a container, a detach of the same volume
//! ([poll(2)](https://man7.org/linux/man-pages/man2/poll.2.html)).

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::{
    job::{AttachJob, distinct_targets},
    queue::Ticket,
};
use crate::{
    error::{Error, Result},
    fault,
    namespace::Target,
};

/// What ends a request early.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard<'a> {
    pub(super) deadline: Instant,
    pub(super) ticket: &'a Ticket,
    /// The end of one of their containers ends the request.
    pub(super) jobs: &'a [AttachJob],
}

impl Guard<'_> {
    /// Checks the deadline, the ticket and the containers, without waiting.
    pub(super) fn check(&self, doing: &str) -> Result<()> {
        self.check_time(&|| doing.to_owned())?;
        self.targets().try_for_each(Target::check_alive)
    }

    fn end(&self) -> Instant {
        let longer =
            if fault::skips("deadline") { Duration::from_secs(3600) } else { Duration::ZERO };
        self.deadline + longer
    }

    /// Checks the deadline and the ticket alone.
    pub(super) fn check_time(&self, awaited: &dyn Fn() -> String) -> Result<()> {
        if self.ticket.is_cancelled() {
            return Err(Error::Cancelled.into());
        }
        if fault::now() >= self.end() {
            return Err(Error::TimedOut { awaited: awaited() }.into());
        }
        Ok(())
    }

    /// Waits until `fd` is readable.
    pub(super) fn wait(&self, fd: BorrowedFd<'_>, awaited: &dyn Fn() -> String) -> Result<()> {
        let mut fds = vec![
            PollFd::new(fd, PollFlags::POLLIN),
            PollFd::new(self.ticket.cancelled(), PollFlags::POLLIN),
        ];
        fds.extend(
            self.targets()
                .map(|target| PollFd::new(target.container.init.as_fd(), PollFlags::POLLIN)),
        );
        loop {
            let left = self.end().saturating_duration_since(fault::now());
            if left.is_zero() {
                return Err(Error::TimedOut { awaited: awaited() }.into());
            }
            // One millisecond more: poll rounds down, and must not end right before the deadline.
            let timeout =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(Error::system("poll", &"a request")(errno)),
            }
        }
        self.check_time(awaited)?;
        self.targets().try_for_each(Target::check_alive)
    }

    /// Each container once.
    pub(super) fn targets(&self) -> impl Iterator<Item = &Target> {
        distinct_targets(self.jobs.iter().map(|job| &job.target)).into_iter()
    }
}
