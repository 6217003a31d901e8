//! Everything that can go wrong, as one enum; each variant has one [`Reason`] on the wire.

use std::{error::Error as _, fmt::Write as _, io};

use crate::{
    agent::{ContainerError, Denied},
    api::block_volume::Reason,
    holders::Holder,
};

/// A result with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the request breaks a rule of the contract.
    #[error("{field}: {value} {rule}")]
    InvalidRequest {
        /// Where: `attachments[2].path`.
        field: String,
        /// What is there, escaped and shortened.
        value: String,
        /// What must hold.
        rule: &'static str,
    },
    /// The agent has no such container to work on.
    #[error("container {id}")]
    Container {
        /// As asked for.
        id: String,
        /// The agent's answer.
        source: ContainerError,
    },
    /// The container's first process ended while we worked.
    #[error("container {id} ended meanwhile")]
    ContainerEnded {
        /// Of the container.
        id: String,
    },
    /// The agent's policy.
    #[error("the agent's policy refuses this request")]
    Denied(#[from] Denied),
    /// Something is at the path where the node should go.
    #[error("{path:?} is taken by a {by}: choose another path in the container")]
    PathTaken {
        /// In the container.
        path: String,
        /// "file", "directory", "block device 8:16", …
        by: String,
    },
    /// No directory to put the node into, and none can be made.
    #[error(
        "{path:?} is no directory in the container, and cannot be made one: choose another path"
    )]
    ParentMissing {
        /// In the container.
        path: String,
    },
    /// The same attachment is there with another owner, mode or access.
    #[error(
        "{path:?} is this volume already, with {there} where {asked} is asked: detach it first"
    )]
    Conflict {
        /// In the container.
        path: String,
        /// What the attachment has.
        there: String,
        /// What the request wants.
        asked: String,
    },
    /// Somebody claims the disk, or has it open.
    #[error("{device} is in use in the guest{}", named(.holders))]
    Busy {
        /// The kernel's name of the disk.
        device: String,
        /// Who, as far as that is known.
        holders: Vec<Holder>,
    },
    /// The deadline passed.
    #[error("timed out waiting for {awaited}")]
    TimedOut {
        /// What did not happen.
        awaited: String,
    },
    /// Another request for the same volume came in, or the caller of one that waits went away.
    #[error("cancelled by a later request for the same volume, or by the end of the caller")]
    Cancelled,
    /// Not the disk that was announced.
    #[error("the disk at {device} has {what} {found}, expected {expected}")]
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
    /// The node cannot be made.
    #[error("{path:?} is on a read-only file system: choose a path below /dev")]
    ReadOnlyFileSystem {
        /// In the container.
        path: String,
    },
    /// The node cannot be made.
    #[error("the file system of {path:?} has no space or no inode left")]
    NoSpace {
        /// In the container.
        path: String,
    },
    /// No virtio-scsi host to scan.
    #[error("the guest has no virtio-scsi controller{}", named.as_deref().map(|name| format!(" at {name}")).unwrap_or_default())]
    NoController {
        /// Where one was asked for.
        named: Option<String>,
    },
    /// This version of the plugin cannot serve that.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A system call failed.
    #[error("{call} of {subject} failed")]
    System {
        /// The system call, or the write to a file of the kernel.
        call: &'static str,
        /// Its object.
        subject: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the kernel does not read as it should.
    #[error("{subject} reads {found:?}, which this plugin does not understand")]
    Malformed {
        /// The file.
        subject: String,
        /// The beginning of its contents.
        found: String,
    },
    /// Somebody else exchanges the device program of the container all the time.
    #[error(
        "the device filter of cgroup {cgroup} was changed {attempts} times meanwhile: try again"
    )]
    FilterContended {
        /// Below the root of the hierarchy.
        cgroup: String,
        /// How often this was tried.
        attempts: usize,
    },
    /// The container moves our node about while we work on it.
    #[error("the node for {path:?} was moved or replaced by the container meanwhile")]
    NodeMoved {
        /// In the container.
        path: String,
    },
    /// A bug in this library.
    #[error("the plugin panicked")]
    Panicked,
    /// A fail point of a test.
    #[cfg(feature = "fault")]
    #[error("fault injected at {point}")]
    Fault {
        /// Name of the fail point.
        point: String,
    },
}

/// What this version cannot serve, and what to use instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// A file system that takes neither a node nor a file.
    #[error("{path:?} is on {file_system}, which takes no file: choose a path below /dev")]
    FileSystem {
        /// In the container.
        path: String,
        /// Its type.
        file_system: String,
    },
    /// A mount there would be one for others, too.
    #[error(
        "what is mounted at {path:?} would be mounted for others, too (shared propagation): choose a path below /dev"
    )]
    Shared {
        /// In the container.
        path: String,
    },
    /// The container has no such user or group.
    #[error(
        "owner {uid}:{gid} is not mapped in the container's user namespace: choose one that is"
    )]
    Owner {
        /// As asked for.
        uid: u32,
        /// As asked for.
        gid: u32,
    },
    /// Nodes there cannot be opened, although nothing had told so.
    #[error(
        "{path:?} is on a mount where no device node can be opened (nodev): choose a path below /dev"
    )]
    NoDev {
        /// In the container.
        path: String,
    },
    /// The parent leads through `/proc/PID/root` or the like.
    #[error("a parent of {path:?} is a link that is not safe to follow: name the real directory")]
    MagicLink {
        /// In the container.
        path: String,
    },
    /// Its maps would have to be shared, and what it keeps in them is not known.
    #[error("device program {program} uses maps, which this version cannot carry over")]
    BpfMaps {
        /// Id of the program.
        program: u32,
    },
    /// The kernel gives no instructions.
    #[error(
        "the kernel does not show device program {program} (CAP_BPF and CAP_PERFMON, kernel.kptr_restrict)"
    )]
    BpfUnreadable {
        /// Id of the program.
        program: u32,
    },
    /// More than a runtime writes: a helper call, a stack.
    #[error(
        "instruction {index} (code {code:#04x}) of device program {program} is not one that this version understands"
    )]
    BpfInstruction {
        /// Id of the program.
        program: u32,
        /// Where.
        index: usize,
        /// What.
        code: u8,
    },
    /// Attached by a link, whose owner alone can exchange it.
    #[error("device program {program} is attached by a bpf_link, which only its owner can change")]
    BpfLink {
        /// Id of the program.
        program: u32,
    },
    /// Constants are hidden, or would be in what is loaded.
    #[error(
        "net.core.bpf_jit_harden hides what device programs consist of: set it to 1 or 0 and restart the container"
    )]
    BpfBlinded,
    /// The kernel completed the program for this machine; it would do so again each time.
    #[error("the kernel of this machine changes device program {program} when it is loaded again")]
    BpfRewritten {
        /// Id of the program.
        program: u32,
    },
    /// Without a way to tell whether it is still the program that was read.
    #[error(
        "the device program of cgroup {cgroup} is attached without BPF_F_ALLOW_MULTI and cannot be exchanged safely"
    )]
    BpfExclusive {
        /// Below the root of the hierarchy.
        cgroup: String,
    },
    /// Widening it would be widening it for others.
    #[error(
        "device program {program} of cgroup {cgroup} refuses disks, also for other containers than this one"
    )]
    BpfShared {
        /// Id of the program.
        program: u32,
        /// Below the root of the hierarchy.
        cgroup: String,
    },
    /// A capability is missing.
    #[error(
        "the agent has no right to bpf({call}): CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN (before Linux 5.11 RLIMIT_MEMLOCK, too)"
    )]
    BpfDenied {
        /// The command.
        call: &'static str,
    },
    /// Rules of the root group belong to the whole guest.
    #[error("the container is in the root cgroup, whose device rules are the guest's own")]
    RootCgroup,
    /// Not mounted by the agent.
    #[error("no cgroup hierarchy with a devices controller is mounted below /sys/fs/cgroup")]
    NoCgroup,
    /// An older kernel than this needs.
    #[error("the guest's kernel has no {call}: use Linux {since} or newer")]
    Kernel {
        /// The system call.
        call: &'static str,
        /// The version that has it.
        since: &'static str,
    },
}

/// The first few, for a message.
fn named(holders: &[Holder]) -> String {
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
    /// For `map_err` on a system call.
    pub(crate) fn system<E: Into<io::Error>>(
        call: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(E) -> Error {
        move |source| Error::System { call, subject: subject.into(), source: source.into() }
    }

    /// The reason on the wire.
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

    /// The message for the caller, with its sources.
    pub fn message(&self) -> String {
        let mut text = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            // Writing to a String does not fail.
            let _ = write!(text, ": {error}");
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
    fn an_unreachable_container_is_no_missing_container() {
        let reason = |source| Error::Container { id: "c1".into(), source }.reason();
        assert_eq!(reason(ContainerError::Unknown), Reason::REASON_CONTAINER_NOT_FOUND);
        assert_eq!(reason(ContainerError::Stopped), Reason::REASON_CONTAINER_NOT_RUNNING);
        assert_eq!(reason(ContainerError::Unreachable("x".into())), Reason::REASON_SYSTEM);
    }
}
