//! The library's error: one enum, in which each variant has one [`Reason`] on the wire.

use std::{error::Error as _, fmt::Write as _, io};

use crate::{
    agent::{ContainerError, Denied},
    api::block_volume::Reason,
    holder::Holder,
    text::{escaped, quoted, shown},
};

pub(crate) use crate::unsupported::Unsupported;

/// A result with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the request breaks a rule of the API.
    #[error("{field}: {value} {rule}")]
    InvalidRequest {
        /// Which one: `attachments[2].path`.
        field: String,
        /// Its value, escaped and shortened.
        value: String,
        /// The rule.
        rule: &'static str,
    },
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
        "{} is this volume already, with {existing} where {requested} is requested: detach it first",
        quoted(path)
    )]
    Conflict {
        /// In the container.
        path: String,
        /// What the attachment has.
        existing: String,
        /// What the request specifies.
        requested: String,
    },
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
    #[error("the disk at {device} has {what} {}, expected {expected}", shown(found))]
    IdentityMismatch {
        /// SCSI address in the guest.
        device: String,
        /// "serial", "size" or "access".
        what: &'static str,
        /// From the disk.
        found: String,
        /// From the request.
        expected: String,
    },
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

/// How many bytes of a source a message has: the agent's policy may explain itself.
const LONGEST_SOURCE: usize = 1000;

/// The first few holders, for a message.
fn list(holders: &[Holder]) -> String {
    const MOST: usize = 4;
    let mut text = String::new();
    for (index, holder) in holders.iter().take(MOST).enumerate() {
        // Writing to a String does not fail.
        let _ = write!(text, "{} {holder}", if index == 0 { ":" } else { "," });
    }
    if holders.len() > MOST {
        let _ = write!(text, " and {} more", holders.len() - MOST);
    }
    text
}

impl Error {
    /// Returns a closure for `map_err` on a system call.
    pub(crate) fn system<E: Into<io::Error>>(
        call: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(E) -> Error {
        move |source| Error::System { call, subject: subject.into(), source: source.into() }
    }

    /// Returns the reason on the wire.
    pub fn reason(&self) -> Reason {
        match self {
            Error::InvalidRequest { .. } => Reason::REASON_INVALID_REQUEST,
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
            Error::Conflict { .. } => Reason::REASON_CONFLICT,
            Error::Busy { .. } => Reason::REASON_BUSY,
            Error::TimedOut { .. } => Reason::REASON_TIMED_OUT,
            Error::Cancelled => Reason::REASON_CANCELLED,
            Error::IdentityMismatch { .. } => Reason::REASON_IDENTITY_MISMATCH,
            Error::ReadOnlyFileSystem { .. } => Reason::REASON_READ_ONLY_FILE_SYSTEM,
            Error::NoSpace { .. } => Reason::REASON_NO_SPACE,
            Error::NoController { .. } => Reason::REASON_NO_CONTROLLER,
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

    /// Returns the message for the caller, with its sources. Names that a container chose are
    /// escaped and bounded.
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            // Writing to a String does not fail.
            let _ = write!(text, ": {}", escaped(&error.to_string(), LONGEST_SOURCE));
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
        let errors = [
            Error::System { call, subject: name.clone(), source: source() },
            Error::Malformed { subject: name.clone(), found: name.clone() },
            Error::PathTaken { path: name.clone(), by: "file".into() },
            Error::ParentMissing { path: name.clone() },
            Error::Conflict { path: name.clone(), existing: "a".into(), requested: "b".into() },
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

    #[test]
    fn an_unreachable_container_is_not_a_missing_one() {
        let reason = |source| Error::Container { id: "c1".into(), source }.reason();
        assert_eq!(reason(ContainerError::Unknown), Reason::REASON_CONTAINER_NOT_FOUND);
        assert_eq!(reason(ContainerError::Stopped), Reason::REASON_CONTAINER_NOT_RUNNING);
        assert_eq!(reason(ContainerError::Unreachable("x".into())), Reason::REASON_SYSTEM);
    }
}
