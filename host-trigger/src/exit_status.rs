//! The exit statuses of `ecr-runtime`. The tables in the manual page, in `docs/exit-status.md` and
//! in `docs/json.md` are generated from [`ExitStatus::ALL`].

use std::process::ExitCode;

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExitStatus {
    /// Done, or nothing had to be done.
    Success,
    /// A bug, or a reply that this program does not understand.
    Unexpected,
    /// The command line is wrong.
    Usage,
    /// Something that was named does not exist or does not run.
    NotFound,
    /// The path or the volume is taken, or has other options.
    Conflict,
    /// The volume is in use in the guest.
    Busy,
    /// The source must not be passed to a VM.
    UnsafeSource,
    /// A deadline passed.
    TimedOut,
    /// A rollback failed, or something is left that needs `repair`.
    Incomplete,
    /// The guest refused.
    Refused,
    /// Something that is needed is missing on this node, in the VM or in the guest.
    Unsupported,
    /// The host does not permit it.
    PermissionDenied,
    /// Host and guest speak different API levels.
    VersionSkew,
    /// Another client holds the QMP socket.
    QmpHeld,
    /// QEMU or the agent cannot be reached.
    Unreachable,
    /// The guest could not tell the state of a volume.
    StateUnknown,
    /// Done, but the audit record of its end was lost.
    AuditLost,
    /// A signal ended the command, after its rollback.
    Signal(u8),
}

impl ExitStatus {
    /// All that are no signals, in the order of their codes.
    pub const ALL: [Self; 17] = [
        Self::Success,
        Self::Unexpected,
        Self::Usage,
        Self::NotFound,
        Self::Conflict,
        Self::Busy,
        Self::UnsafeSource,
        Self::TimedOut,
        Self::Incomplete,
        Self::Refused,
        Self::Unsupported,
        Self::PermissionDenied,
        Self::VersionSkew,
        Self::QmpHeld,
        Self::Unreachable,
        Self::StateUnknown,
        Self::AuditLost,
    ];

    /// The number that the process ends with; 128 + n for the signal n.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Unexpected => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Busy => 5,
            Self::UnsafeSource => 6,
            Self::TimedOut => 7,
            Self::Incomplete => 8,
            Self::Refused => 9,
            Self::Unsupported => 10,
            Self::PermissionDenied => 11,
            Self::VersionSkew => 12,
            Self::QmpHeld => 13,
            Self::Unreachable => 14,
            Self::StateUnknown => 15,
            Self::AuditLost => 16,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// What it means, in a few words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Success => "success, or unchanged",
            Self::Unexpected => "unexpected error",
            Self::Usage => "usage error",
            Self::NotFound => "not found",
            Self::Conflict => "conflict",
            Self::Busy => "busy",
            Self::UnsafeSource => "unsafe source",
            Self::TimedOut => "timed out",
            Self::Incomplete => "incomplete",
            Self::Refused => "refused by the guest",
            Self::Unsupported => "unsupported",
            Self::PermissionDenied => "permission denied on the host",
            Self::VersionSkew => "version skew",
            Self::QmpHeld => "QMP socket held by another client",
            Self::Unreachable => "QEMU, the agent or the container engine is unreachable",
            Self::StateUnknown => "state unknown",
            Self::AuditLost => "audit record lost",
            Self::Signal(_) => "ended by a signal, after the rollback",
        }
    }

    /// When it is used.
    pub fn examples(self) -> &'static str {
        match self {
            Self::Success => "the volume is attached, or was attached before with the same options",
            Self::Unexpected => {
                "a bug, a reply of QEMU or the guest that is not understood, or a result that \
                 could not be written"
            }
            Self::Usage => {
                "an invalid ID, a relative device path, an ambiguous prefix or controller"
            }
            Self::NotFound => {
                "no such pod, sandbox, container, source or volume; the container does not run"
            }
            Self::Conflict => {
                "the device path or the volume is taken, other options, another run, a size that \
                 would lose data"
            }
            Self::Busy => "a process, mount or device in the guest holds the volume",
            Self::UnsafeSource => {
                "the source is empty, a directory, mounted, held, read-only, or on a disk of the \
                 host's root file system"
            }
            Self::TimedOut => "any deadline; a stopped QEMU",
            Self::Incomplete => "the rollback failed: run the same command again, or `repair`",
            Self::Refused => {
                "the agent's policy, another serial number, a read-only or full file system"
            }
            Self::Unsupported => {
                "no virtio-scsi controller, no plugin in the agent, a device filter that cannot be \
                 changed safely, not QEMU, a pod that is not Kata's"
            }
            Self::PermissionDenied => {
                "not root, a run directory that others than root can change, the host's kernel \
                 refuses the source, or a limit of open files below 32"
            }
            Self::VersionSkew => "the plugin speaks another API level",
            Self::QmpHeld => "Kata's shim holds the only QMP socket",
            Self::Unreachable => "the sandbox does not run, or a socket does not exist",
            Self::StateUnknown => {
                "`list` and `inspect`, after printing: the guest does not reply, refuses, or cannot \
                 tell; the container is paused; a sandbox of `list --all` cannot be asked"
            }
            Self::AuditLost => {
                "done, but the end of the operation could not be written to the audit log"
            }
            Self::Signal(_) => "128 + n for the signal n: 130 SIGINT, 143 SIGTERM, 129 SIGHUP",
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_is_in_the_table_by_its_code_and_has_its_own_text() {
        for (code, status) in ExitStatus::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(status.code()), code);
            let same = ExitStatus::ALL.iter().filter(|other| other.meaning() == status.meaning());
            assert_eq!(same.count(), 1, "{}", status.meaning());
        }
        assert_eq!(ExitStatus::Signal(2).code(), 130);
    }
}
