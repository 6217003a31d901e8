//! What a caller may rely on in an error, and what it is for those of the guest and of QEMU's
//! monitor.

use std::io;

use block_volume_api::block_volume::Reason;

use block_volume_qmp::QmpError;

/// What a caller may rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Stable, for programs.
    pub reason: &'static str,
    /// The exit status.
    pub exit_code: u8,
    /// A way out, where there is one.
    pub hint: Option<&'static str>,
}

/// Of what the guest says.
pub(super) fn of_guest(reason: Reason) -> (&'static str, u8, Option<&'static str>) {
    match reason {
        Reason::REASON_UNSPECIFIED => ("guest_unspecified", 1, None),
        Reason::REASON_INVALID_REQUEST => ("guest_invalid_request", 1, None),
        Reason::REASON_CONTAINER_NOT_FOUND => ("container_not_found", 3, None),
        Reason::REASON_CONTAINER_NOT_RUNNING => ("container_not_running", 3, None),
        Reason::REASON_PATH_TAKEN => ("path_taken", 4, Some("choose another --device-path")),
        Reason::REASON_PARENT_MISSING => (
            "parent_missing",
            3,
            Some("choose a --device-path whose directories are real ones, or none yet"),
        ),
        Reason::REASON_CONFLICT => {
            ("other_options", 4, Some("unplug it first, or repeat the options"))
        }
        Reason::REASON_BUSY => (
            "busy",
            5,
            Some("end its use in the guest, wait for that with --wait, or break it with --force"),
        ),
        Reason::REASON_TIMED_OUT => ("timed_out", 7, Some("a longer --timeout may help")),
        Reason::REASON_CANCELLED => {
            ("cancelled", 4, Some("another run has unplugged it meanwhile"))
        }
        Reason::REASON_DENIED => ("denied_by_guest", 9, Some("the agent's policy must allow it")),
        Reason::REASON_IDENTITY_MISMATCH => ("identity_mismatch", 9, None),
        Reason::REASON_READ_ONLY_FILE_SYSTEM => {
            ("read_only_file_system", 9, Some("choose a --device-path below /dev"))
        }
        Reason::REASON_NO_SPACE => {
            ("no_space", 9, Some("choose a --device-path on another file system"))
        }
        Reason::REASON_NO_CONTROLLER => ("no_controller", 10, None),
        Reason::REASON_UNSUPPORTED => ("unsupported", 10, None),
        Reason::REASON_SYSTEM => ("guest_system", 1, None),
    }
}

/// Of what went wrong between this program and QEMU.
pub(super) fn of_qmp(error: &QmpError) -> (&'static str, u8, Option<&'static str>) {
    match error {
        QmpError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            ("denied", 11, Some("run it as root"))
        }
        QmpError::Connect { .. } => ("qmp_unreachable", 14, Some("is the sandbox running?")),
        QmpError::Held { .. } => (
            "qmp_held",
            13,
            Some(
                "Kata's shim holds qmp.sock for life: give the VM a second QMP socket (extra-monitor.sock, or --qmp)",
            ),
        ),
        QmpError::Silent { .. } => ("timed_out", 7, Some("QEMU may be stopped")),
        QmpError::NotQmp { .. } => ("not_qemu", 10, None),
        QmpError::TimedOut { .. } => ("timed_out", 7, Some("QEMU may be stopped or overloaded")),
        QmpError::Disconnected { .. } => ("qmp_lost", 14, Some("has QEMU ended?")),
        QmpError::Refused { .. } | QmpError::Answer { .. } | QmpError::Unlisted { .. } => {
            ("qemu_refused", 1, None)
        }
    }
}
