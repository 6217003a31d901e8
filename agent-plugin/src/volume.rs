//! The attach, detach and resize sequences with their undo, and what can be said about an
//! attachment. Knows no encoding.
//!
//! Everything here is synchronous and runs on a thread that lives for one request: nothing can cut
//! it in the middle.

mod attach;
mod detach;
mod hunt;
mod inspect;
mod release;
mod resize;
mod slots;

use std::{
    fmt,
    os::fd::{AsFd as _, BorrowedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    block::DeviceNumber,
    cgroup::{self, Rights},
    device_node::{NodeOptions, NodePath, Way},
    error::{Error, Result},
    fault,
    namespace::Target,
    scsi::ScsiAddress,
};

pub(crate) use attach::attach;
pub(crate) use detach::detach;
pub(crate) use inspect::{Guest, Inspected, PathState, inspect, paths, probe};
pub(crate) use release::Terms;
pub(crate) use resize::resize;
pub(crate) use slots::{Slots, Ticket};

/// What a container may do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

impl Access {
    fn rights(self) -> Rights {
        match self {
            Access::ReadWrite => Rights::READ_WRITE,
            Access::ReadOnly => Rights::READ,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::ReadWrite => "read-write",
            Access::ReadOnly => "read-only",
        })
    }
}

/// One volume and where it goes. Everything in here was checked.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    pub(crate) controller: Option<String>,
    pub(crate) address: ScsiAddress,
    pub(crate) serial: String,
    pub(crate) size: u64,
    pub(crate) path: NodePath,
    pub(crate) access: Access,
    pub(crate) options: NodeOptions,
}

/// What an attach did, as the host keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) device: DeviceNumber,
    pub(crate) node: Way,
    /// Directories that did not exist before, outermost first.
    pub(crate) parents_made: Vec<NodePath>,
    pub(crate) filter: cgroup::Mode,
    pub(crate) allowed_before: bool,
    /// Tells a container from a later one of its id.
    pub(crate) container_started: u64,
}

/// A volume that is attached.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) serial: String,
    pub(crate) unchanged: bool,
    pub(crate) guest_device: String,
    pub(crate) outcome: Outcome,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
}

/// A volume that is gone.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) serial: String,
    pub(crate) unchanged: bool,
}

/// A volume whose size the kernel knows.
#[derive(Debug)]
pub(crate) struct Resized {
    pub(crate) serial: String,
    pub(crate) unchanged: bool,
    pub(crate) size: u64,
}

/// An attachment with the container that it goes to.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) attachment: Attachment,
    pub(crate) target: Target,
}

/// A volume that shall go, or that is only looked at.
#[derive(Debug)]
pub(crate) struct Departure {
    pub(crate) attachment: Attachment,
    /// What the host kept of the reply to Attach, if it got one.
    pub(crate) outcome: Option<Outcome>,
    /// Another container goes on with the disk: only this one's node and right go.
    pub(crate) keep_disk: bool,
    /// Another path of the same container goes on: only the node goes.
    pub(crate) keep_right: bool,
    /// `None`: the container is not running; its nodes and rights went with it.
    pub(crate) target: Option<Target>,
}

/// Why a request failed, and what is left of it.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Box<Error>,
    /// The volume that failed, where one did.
    pub(crate) serial: Option<String>,
    /// What went wrong while it was undone.
    pub(crate) left: Vec<Error>,
    /// A part is done and stays done: a repetition goes on from there.
    pub(crate) partial: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error: Box::new(error), serial: None, left: Vec::new(), partial: false }
    }
}

impl Failed {
    /// Whether the guest is as it was before the request.
    pub(crate) fn undone(&self) -> bool {
        self.left.is_empty() && !self.partial
    }
}

/// A failure of one volume.
trait OfVolume<T> {
    fn of(self, serial: &str) -> Result<T, Failed>;
}

impl<T> OfVolume<T> for Result<T> {
    fn of(self, serial: &str) -> Result<T, Failed> {
        self.map_err(|error| Failed { serial: Some(serial.to_owned()), ..Failed::from(error) })
    }
}

/// The time that each stage of an operation took.
#[derive(Debug)]
pub(crate) struct Stages {
    operation: &'static str,
    since: Instant,
    pub(crate) taken: Vec<(&'static str, Duration)>,
}

impl Stages {
    pub(crate) fn new(operation: &'static str) -> Stages {
        Stages { operation, since: Instant::now(), taken: Vec::with_capacity(8) }
    }

    /// A stage ends here, and the next one begins.
    fn end(&mut self, stage: &'static str) -> Result<()> {
        let now = Instant::now();
        self.taken.push((stage, now.duration_since(self.since)));
        self.since = now;
        fault::after(self.operation, stage)
    }
}

/// What ends a request early: its deadline, the end of a container, a detach of the same volume.
#[derive(Debug, Clone, Copy)]
struct Guard<'a> {
    deadline: Instant,
    ticket: &'a Ticket,
    arrivals: &'a [Arrival],
}

impl Guard<'_> {
    /// Looks, without waiting.
    fn check(&self, doing: &str) -> Result<()> {
        self.check_time(|| doing.to_owned())?;
        self.targets().try_for_each(Target::check_alive)
    }

    fn end(&self) -> Instant {
        let longer =
            if fault::skips("deadline") { Duration::from_secs(3600) } else { Duration::ZERO };
        self.deadline + longer
    }

    /// The same without a look at the containers.
    fn check_time(&self, awaited: impl Fn() -> String) -> Result<()> {
        if self.ticket.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if fault::now() >= self.end() {
            return Err(Error::TimedOut { awaited: awaited() });
        }
        Ok(())
    }

    /// Waits until `fd` is readable.
    fn wait(&self, fd: BorrowedFd<'_>, awaited: impl Fn() -> String) -> Result<()> {
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
                return Err(Error::TimedOut { awaited: awaited() });
            }
            // A millisecond more: poll rounds down, and must not end right before the deadline.
            let timeout =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(Error::system("poll", "the uevent socket")(errno)),
            }
        }
        self.check("a device event")
    }

    /// Each container once.
    fn targets(&self) -> impl Iterator<Item = &Target> {
        distinct_targets(self.arrivals.iter().map(|arrival| &arrival.target)).into_iter()
    }
}

/// Each container of a batch once, in the batch's order.
fn distinct_targets<'a>(targets: impl Iterator<Item = &'a Target>) -> Vec<&'a Target> {
    let mut distinct: Vec<&Target> = Vec::new();
    for target in targets {
        if !distinct.iter().any(|known| known.id == target.id) {
            distinct.push(target);
        }
    }
    distinct
}
