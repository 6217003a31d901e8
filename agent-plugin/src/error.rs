//! The library's error: one enum, in which each variant has one [`Reason`] on the wire.

use std::{error::Error as _, fmt, io};

use crate::{
    agent::{ContainerError, Denied},
    api::block_volume::Reason,
    holder::Holder,
    text::{append, displayed, escaped, quoted, shown},
};

pub(crate) use crate::unsupported::Unsupported;
pub use crate::{boxed_error::BoxedError, file_system_error::FileSystemError};

/// A result with this library's [`Error`].
pub type Result<T, E = BoxedError> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the request breaks a rule of the API.
    #[error("{}: {} {}", .0.field, .0.value, .0.rule)]
    InvalidRequest(Box<InvalidField>),
    /// The agent has no container of this id that a volume could be attached to.
    #[error("container {id}")]
    Container {
        /// As requested.
        id: String,
        /// The agent's answer.
        source: ContainerError,
    },
    /// The container's first process ended during the request.
    #[error("container {id} ended meanwhile")]
    ContainerEnded {
        /// Of the container.
        id: String,
    },
    /// The agent's policy denies the request.
    #[error("the agent's policy refuses this request")]
    Denied(#[from] Denied),
    /// Something else exists at the node's path.
    #[error("{} is taken by a {by}: choose another path in the container", quoted(path))]
    PathTaken {
        /// In the container.
        path: String,
        /// "file", "directory", "block device 8:16", …
        by: String,
    },
    /// The directory for the node does not exist and cannot be made.
    #[error(
        "{} is not a directory in the container, and cannot be made one: choose another path",
        quoted(path)
    )]
    ParentMissing {
        /// In the container.
        path: String,
    },
    /// The same attachment exists with another owner, mode or access.
    #[error(
        "{} is this volume already, with {} where {} is requested: detach it first",
        quoted(&.0.path), .0.existing, .0.requested
    )]
    Conflict(Box<Conflict>),
    /// A holder claims the disk, or has it open.
    #[error("{device} is in use in the guest{}", list(.holders))]
    Busy {
        /// The kernel's name of the disk.
        device: String,
        /// The holders, as far as they are known.
        holders: Vec<Holder>,
    },
    /// The deadline passed.
    #[error("timed out waiting for {}", shown(awaited))]
    TimedOut {
        /// What was awaited.
        awaited: String,
    },
    /// Another request for the same volume arrived, or the caller of a waiting request closed its
    /// connection.
    #[error("cancelled by a later request for the same volume, or by the end of the caller")]
    Cancelled,
    /// The disk is not the one that the request describes.
    #[error(
        "the disk at {} has {} {}, expected {}", .0.device, .0.what, shown(&.0.found), .0.expected
    )]
    IdentityMismatch(Box<Mismatch>),
    /// The node cannot be made on a read-only file system.
    #[error("{} is on a read-only file system: choose a path below /dev", quoted(path))]
    ReadOnlyFileSystem {
        /// In the container.
        path: String,
    },
    /// The node cannot be made on a full file system.
    #[error("the file system of {} has no space or no inode left", quoted(path))]
    NoSpace {
        /// In the container.
        path: String,
    },
    /// No virtio-scsi host to scan.
    #[error("the guest has no virtio-scsi controller{}", named.as_deref().map(|name| format!(" at {name}")).unwrap_or_default())]
    NoController {
        /// The one that was requested, if one was.
        named: Option<String>,
    },
    /// The file system of the volume cannot be mounted.
    #[error("{0}")]
    FileSystem(Box<FileSystemError>),
    /// This version of the plugin cannot serve the request.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A system call failed.
    #[error("{call} of {} failed", shown(subject))]
    System {
        /// The system call, or the write to a file of the kernel.
        call: &'static str,
        /// Its object.
        subject: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The contents of a kernel file are not understood.
    #[error("{} reads {}, which this plugin does not understand", shown(subject), quoted(found))]
    Malformed {
        /// The file.
        subject: String,
        /// The beginning of its contents.
        found: String,
    },
    /// Another process keeps replacing the container's device program.
    #[error(
        "the device filter of cgroup {} was changed {attempts} times meanwhile: try again",
        shown(cgroup)
    )]
    FilterContended {
        /// Below the root of the hierarchy.
        cgroup: String,
        /// How often a change was tried.
        attempts: usize,
    },
    /// The container moves or replaces the node during the request.
    #[error("the node for {} was moved or replaced by the container meanwhile", quoted(path))]
    NodeMoved {
        /// In the container.
        path: String,
    },
    /// A bug in this library.
    #[error("the plugin panicked")]
    Panicked,
    /// A fault point of a test.
    #[cfg(feature = "fault")]
    #[error("fault injected at {point}")]
    Fault {
        /// Name of the fault point.
        point: String,
    },
}

/// A field that breaks a rule of the API. Like the other details in a box, it would make every
/// result of this library larger.
#[derive(Debug)]
pub struct InvalidField {
    /// Which one: `attachments[2].path`.
    pub field: String,
    /// Its value, escaped and shortened.
    pub value: String,
    /// The rule.
    pub rule: &'static str,
}

/// An attachment that exists with other options.
#[derive(Debug)]
pub struct Conflict {
    /// In the container.
    pub path: String,
    /// What the attachment has.
    pub existing: String,
    /// What the request specifies.
    pub requested: String,
}

/// What distinguishes a disk from the requested one.
#[derive(Debug)]
pub struct Mismatch {
    /// SCSI address in the guest.
    pub device: String,
    /// "serial", "size" or "access".
    pub what: &'static str,
    /// From the disk.
    pub found: String,
    /// From the request.
    pub expected: String,
}

/// How many bytes of a source a message has: the agent's policy may explain itself.
const LONGEST_SOURCE: usize = 1000;

/// The first few holders, for a message.
fn list(holders: &[Holder]) -> String {
    const MOST: usize = 4;
    let mut text = String::new();
    for (index, holder) in holders.iter().take(MOST).enumerate() {
        let separator = if index == 0 { ":" } else { "," };
        append(&mut text, format_args!("{separator} {holder}"));
    }
    if holders.len() > MOST {
        append(&mut text, format_args!(" and {} more", holders.len() - MOST));
    }
    text
}

impl Error {
    /// Returns a closure for `map_err` on a system call. The subject becomes text only for an
    /// error.
    pub(crate) fn system<'a, E: Into<io::Error>>(
        call: &'static str,
        subject: &'a dyn fmt::Display,
    ) -> impl FnOnce(E) -> BoxedError + use<'a, E> {
        move |source| Error::of_system_call(call, subject, source.into())
    }

    /// Not a part of the closure, which is compiled at each of its many uses.
    #[cold]
    #[inline(never)]
    fn of_system_call(
        call: &'static str,
        subject: &dyn fmt::Display,
        source: io::Error,
    ) -> BoxedError {
        BoxedError::from(Error::System { call, subject: displayed(&subject), source })
    }

    /// Returns the reason on the wire.
    pub fn reason(&self) -> Reason {
        match self {
            Error::InvalidRequest(_) => Reason::REASON_INVALID_REQUEST,
            Error::Container { source: ContainerError::Unknown, .. } => {
                Reason::REASON_CONTAINER_NOT_FOUND
            }
            Error::Container { source: ContainerError::Unreachable(_), .. } => {
                Reason::REASON_SYSTEM
            }
            Error::Container { .. } | Error::ContainerEnded { .. } => {
                Reason::REASON_CONTAINER_NOT_RUNNING
            }
            Error::Denied(_) => Reason::REASON_DENIED,
            Error::PathTaken { .. } => Reason::REASON_PATH_TAKEN,
            Error::ParentMissing { .. } => Reason::REASON_PARENT_MISSING,
            Error::Conflict(_) => Reason::REASON_CONFLICT,
            Error::Busy { .. } => Reason::REASON_BUSY,
            Error::TimedOut { .. } => Reason::REASON_TIMED_OUT,
            Error::Cancelled => Reason::REASON_CANCELLED,
            Error::IdentityMismatch(_) => Reason::REASON_IDENTITY_MISMATCH,
            Error::ReadOnlyFileSystem { .. } => Reason::REASON_READ_ONLY_FILE_SYSTEM,
            Error::NoSpace { .. } => Reason::REASON_NO_SPACE,
            Error::NoController { .. } => Reason::REASON_NO_CONTROLLER,
            Error::FileSystem(error) => error.reason(),
            Error::Unsupported(_) => Reason::REASON_UNSUPPORTED,
            Error::System { .. }
            | Error::Malformed { .. }
            | Error::FilterContended { .. }
            | Error::NodeMoved { .. }
            | Error::Panicked => Reason::REASON_SYSTEM,
            #[cfg(feature = "fault")]
            Error::Fault { .. } => Reason::REASON_SYSTEM,
        }
    }

    /// How many files got another group before the time was over.
    pub(crate) fn owners_changed(&self) -> u64 {
        match self {
            Error::FileSystem(error) => match **error {
                FileSystemError::Owners { changed } => changed,
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Whether a deadline passed.
    pub(crate) fn is_time_out(&self) -> bool {
        matches!(self, Error::TimedOut { .. })
    }

    /// Whether a path of a container leads to no directory, or out of the container.
    pub(crate) fn is_unreachable_path(&self) -> bool {
        matches!(
            self,
            Error::ParentMissing { .. } | Error::Unsupported(Unsupported::MagicLink { .. })
        )
    }

    /// Returns the message for the caller, with its sources. Names that a container chose are
    /// escaped and bounded.
    pub fn message(&self) -> String {
        let mut text = displayed(&self);
        let mut source = self.source();
        while let Some(error) = source {
            append(&mut text, format_args!(": {}", escaped(&displayed(&error), LONGEST_SOURCE)));
            source = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_its_sources_once() {
        let error = Error::System {
            call: "mknodat",
            subject: "/dev/xvda".into(),
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        assert_eq!(
            error.message(),
            "mknodat of /dev/xvda failed: Operation not permitted (os error 1)"
        );
        let error = Error::Container { id: "c1".into(), source: ContainerError::Paused };
        assert_eq!(error.message(), "container c1: the container is paused");
        assert_eq!(
            Error::Denied(Denied("no".into())).message(),
            "the agent's policy refuses this request: no"
        );
    }

    #[test]
    fn names_of_a_container_stay_in_their_line() {
        let name = format!("/tmp/a\n\u{1b}[2J{}", "\u{202e}".repeat(4000));
        let call = "openat2";
        let source = || io::Error::from_raw_os_error(libc::EIO);
        let conflict = Conflict { path: name.clone(), existing: "a".into(), requested: "b".into() };
        let errors = [
            Error::System { call, subject: name.clone(), source: source() },
            Error::Malformed { subject: name.clone(), found: name.clone() },
            Error::PathTaken { path: name.clone(), by: "file".into() },
            Error::ParentMissing { path: name.clone() },
            Error::Conflict(Box::new(conflict)),
            Error::TimedOut { awaited: name.clone() },
            Error::ReadOnlyFileSystem { path: name.clone() },
            Error::NoSpace { path: name.clone() },
            Error::NodeMoved { path: name.clone() },
            Error::FilterContended { cgroup: name.clone(), attempts: 1 },
            Unsupported::MagicLink { path: name.clone() }.into(),
            Error::Container { id: "c1".into(), source: ContainerError::Unreachable(name) },
        ];
        for error in errors {
            let message = error.message();
            assert!(message.contains(r"/tmp/a\n\u{1b}[2J"), "{message}");
            assert!(!message.chars().any(char::is_control) && message.len() < 2500, "{message:?}");
        }
    }

    /// It is moved at each `?`.
    #[test]
    fn an_error_is_small() {
        assert!(size_of::<Error>() <= 56, "{}", size_of::<Error>());
    }

    #[test]
    fn an_unreachable_container_is_not_a_missing_one() {
        let reason = |source| Error::Container { id: "c1".into(), source }.reason();
        assert_eq!(reason(ContainerError::Unknown), Reason::REASON_CONTAINER_NOT_FOUND);
        assert_eq!(reason(ContainerError::Stopped), Reason::REASON_CONTAINER_NOT_RUNNING);
        assert_eq!(reason(ContainerError::Unreachable("x".into())), Reason::REASON_SYSTEM);
    }
}
