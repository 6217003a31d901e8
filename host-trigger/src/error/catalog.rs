//! What a caller may rely on in an error: the stable reason, the exit status and the remedy.

use std::io;

use block_volume_api::block_volume::Reason;
use block_volume_qmp::{QmpError, Untrusted};

use super::Error;
use crate::exit_status::ExitStatus::{self, *};

/// What a caller may rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// A stable name for programs.
    pub reason: &'static str,
    /// How the command ends.
    pub exit_status: ExitStatus,
    /// What to do about it, if that is known.
    pub remedy: Option<&'static str>,
}

fn class(
    reason: &'static str,
    exit_status: ExitStatus,
    remedy: impl Into<Option<&'static str>>,
) -> Class {
    Class { reason, exit_status, remedy: remedy.into() }
}

const RUN_AS_ROOT: &str = "run it as root";
const RAISE_LIMIT: &str =
    "raise the hard limit (`ulimit -Hn`, or LimitNOFILE= of a systemd unit) to 1024";
const RAISE_NODE_LIMIT: &str = "raise the limit of the whole node (`sysctl fs.file-max`)";
const NAME_CRI: &str =
    "check that containerd or CRI-O runs, or name its socket with --cri; with IDs it is not needed";
const NAME_IDS: &str = "name the sandbox and the container by their IDs";
const LONGER_TIMEOUT: &str = "a longer --timeout may help";
const OTHER_PATH: &str = "choose another --device-path or --mount-path";
const REPEAT_OR_UNPLUG: &str = "unplug it first, or repeat the options";

pub(super) fn of(error: &Error) -> Class {
    if let Some(class) = of_descriptors(error) {
        return class;
    }
    match error {
        Error::Usage { .. } => class("usage", Usage, None),
        Error::InvalidId { .. } => class("invalid_id", Usage, None),
        Error::AmbiguousId { .. } => class("ambiguous_id", Usage, "give more characters of the ID"),
        Error::SandboxUnknown { .. } => {
            class("sandbox_needed", Usage, "name the sandbox with --sandbox")
        }
        Error::SandboxNotNamed => class("sandbox_needed", Usage, "name the sandbox with --sandbox"),
        Error::PauseContainer { .. } => {
            class("pause_container", Usage, "name a container of the workload")
        }
        Error::DevicePath { .. } => class("invalid_device_path", Usage, None),
        Error::Unpaired { .. } => class(
            "unpaired",
            Usage,
            "give one --device-path or --mount-path after each --block-volume",
        ),
        Error::MountPath { .. } => class("invalid_mount_path", Usage, None),
        Error::TwoPaths { .. } => class(
            "two_paths",
            Usage,
            "a volume is a device (--device-path) or mounted (--mount-path): leave out one of them",
        ),
        Error::MountOption { .. } => class(
            "invalid_mount_option",
            Usage,
            "leave it out: what is mounted is always nodev and nosuid, and --read-only says whether \
             the container can write",
        ),
        Error::MountInfo { .. } => class(
            "invalid_mount_info",
            Usage,
            "name a file with the keys volume-type, device, fstype, options and metadata (fsGroup, \
             fsGroupChangePolicy), as Kata's direct-assigned volumes have it",
        ),
        Error::Repeated { .. } => class("repeated", Usage, None),
        Error::TooMany { .. } => class("too_many", Usage, "split the call"),
        Error::PathAmbiguous { .. } => class(
            "ambiguous_path",
            Usage,
            "name the container with --container, or the volume with --volume",
        ),
        Error::VolumeAmbiguous { .. } => {
            class("ambiguous_volume", Usage, "name one by its path and --container")
        }
        Error::WholeVolume { .. } => {
            class("whole_volume", Usage, "name the whole volume with --volume, and no container")
        }
        Error::AgentAddress { .. } => class(
            "invalid_agent_address",
            Usage,
            "use vsock://CID:PORT, hvsock://PATH:PORT or unix://PATH, with an absolute path",
        ),
        Error::ControllerAmbiguous { .. } => {
            class("ambiguous_controller", Usage, "name one with --controller")
        }
        Error::ControllerUnknown { .. } => {
            class("unknown_controller", Usage, "name one of these with --controller")
        }
        Error::AuditLog { .. } => {
            class("audit_log", Usage, "name a file or the socket of a syslog with --audit-log")
        }
        Error::InvalidLimits { .. } => class("invalid_limits", Usage, None),

        Error::NoKataConfiguration { .. } => class(
            "no_kata_configuration",
            NotFound,
            "install Kata Containers, or name ecr-qemu by hand in its configuration",
        ),
        Error::RuntimeClassUnknown { .. } => class(
            "runtime_class_not_found",
            NotFound,
            "`ecr-runtime node status` shows the runtime classes",
        ),
        Error::NoQemuClass { .. } => {
            class("not_qemu", Unsupported, "use a runtime class whose hypervisor is QEMU")
        }
        Error::WrapperUnusable { .. } => class(
            "wrapper_unusable",
            Unsupported,
            "install ecr-qemu beside this program, or name it with --wrapper",
        ),
        Error::MixedConfigurations { .. } => class(
            "mixed_configurations",
            Unsupported,
            "give the runtime class a configuration in a directory of its own, by the commands that \
             are printed",
        ),
        Error::ConfigurationUnreadable { .. } => class(
            "configuration_unreadable",
            Unsupported,
            "correct that file, or move it to another directory",
        ),
        Error::NoQemuPath { .. } => class(
            "no_qemu_path",
            Unsupported,
            "name QEMU there, in the table [hypervisor.qemu], by its whole path: path = \
             \"/usr/bin/qemu-system-x86_64\", for example",
        ),
        Error::ForeignDropIn { .. } => class(
            "foreign_drop_in",
            Conflict,
            "move it away, or remove it with `ecr-runtime node disable --force`",
        ),
        Error::LaterDropIn { .. } => class(
            "later_drop_in",
            Conflict,
            "give it a name that sorts before zz-ecr-runtime.toml, or remove the path there",
        ),
        Error::OtherRecord { .. } => class(
            "other_record",
            Conflict,
            "name the runtime classes of one QEMU with --runtime-class, and for another QEMU a copy \
             of ecr-qemu with another name with --wrapper; or remove the record",
        ),

        Error::CriEndpoint { .. } => {
            class("invalid_cri", Usage, "use an absolute path or unix://PATH")
        }
        Error::CriAmbiguous { .. } => class("ambiguous_cri", Usage, "name one with --cri"),
        Error::NoCri { .. } => class("no_cri", Unreachable, NAME_CRI),
        Error::CriUnreachable { .. } => class("cri_unreachable", Unreachable, NAME_CRI),
        Error::CriTimedOut { .. } => class("timed_out", TimedOut, LONGER_TIMEOUT),
        Error::NotCri { .. } => class("not_cri", Unsupported, NAME_CRI),
        Error::CriUnimplemented { .. } => class(
            "cri_disabled",
            Unsupported,
            "enable the CRI plugin of containerd (`disabled_plugins` in its config.toml), or use \
             containerd 1.6 or CRI-O 1.23 or newer",
        ),
        Error::CriRefused { .. } => {
            class("cri_refused", Unreachable, "the journal of the container engine says more")
        }
        Error::CriReply { .. } => class("cri_reply", Unexpected, NAME_IDS),
        Error::PodNotFound { .. } => class(
            "pod_not_found",
            NotFound,
            "name it as NAMESPACE/NAME, on the node that it runs on",
        ),
        Error::PodNotReady { .. } => {
            class("pod_not_ready", NotFound, "wait until the pod runs (`kubectl get pod`)")
        }
        Error::PodAmbiguous { .. } => class("ambiguous_pod", Usage, NAME_IDS),
        Error::NotKata { .. } => class(
            "not_kata",
            Unsupported,
            "use a pod with a runtime class of Kata's (`ecr-runtime node status`), or name another \
             state directory with --run-dir",
        ),
        Error::PodContainerNotFound { .. } => class(
            "pod_container_not_found",
            NotFound,
            "with --pod, --container is the container's name in the pod",
        ),
        Error::PodContainerNotRunning { .. } => {
            class("pod_container_not_running", NotFound, "wait until the container runs")
        }
        Error::PodContainerTwice { .. } => class("ambiguous_container", Usage, NAME_IDS),
        Error::PodContainerNotNamed { .. } => {
            class("container_not_named", Usage, "name one with --container")
        }
        Error::PodWithoutContainer { .. } => {
            class("pod_without_container", NotFound, "wait until a container of the pod runs")
        }
        Error::PodContainerRestarted { .. } => class(
            "container_restarted",
            NotFound,
            "run the command again: it finds the container that runs now",
        ),

        Error::SandboxNotFound { .. } => class(
            "sandbox_not_found",
            NotFound,
            "name another state directory with --run-dir, or the sockets with --qmp and --agent",
        ),
        Error::SandboxStarting { .. } => class(
            "sandbox_starting",
            Unreachable,
            "try again when the pod is running; if its start has failed, the shim's log says why; if \
             its VMM is rootless, name the VMM's user with --vmm-user",
        ),
        Error::ContainerNotFound { .. } => class(
            "container_not_found",
            NotFound,
            "`ecr-runtime check --sandbox ID` shows the containers of a sandbox",
        ),
        Error::SourceNotFound { .. } => class("source_not_found", NotFound, None),
        Error::VolumeNotFound { .. } => class(
            "volume_not_found",
            NotFound,
            "`ecr-runtime block-volume list` shows what is attached",
        ),

        Error::PathTaken { .. } => class("path_taken", Conflict, OTHER_PATH),
        Error::VolumeTaken { .. } => {
            class("volume_taken", Conflict, "unplug it there first, or share it with --shared")
        }
        Error::OtherOptions { .. } => class("other_options", Conflict, REPEAT_OR_UNPLUG),
        Error::PathHoldsVolume { .. } => class("path_taken", Conflict, OTHER_PATH),
        Error::OtherContainer { .. } => {
            class("other_container", Conflict, "name that container with --container, or none")
        }
        Error::ConcurrentRun { .. } => {
            class("another_run", Conflict, "try again when the other run has ended")
        }
        Error::SetTaken { .. } => class(
            "descriptor_set_taken",
            Conflict,
            "QMP's query-fdsets shows what is in the set, and remove-fd removes it",
        ),
        Error::VolumeChanged { .. } => class(
            "changed_meanwhile",
            Conflict,
            "run it again if the volume is still to be unplugged",
        ),
        Error::AbandonedVolume { .. } => class(
            "abandoned_volume",
            Conflict,
            "detach it in the guest first, by `ecr-runtime block-volume repair`",
        ),
        Error::LimitsConflict { .. } => class(
            "limits_conflict",
            Conflict,
            "`ecr-runtime block-volume inspect` shows the limits that it has",
        ),
        Error::WouldShrink { .. } => class(
            "would_shrink",
            Conflict,
            "--allow-shrink makes it smaller; the data beyond the new end is lost",
        ),
        Error::ShrinkInUse { .. } => class(
            "busy",
            Busy,
            "unmount it in the container (or unplug what was plugged with --mount-path), or end its \
             other use there, and then make it smaller",
        ),
        Error::DeviceSize { .. } => class(
            "device_size",
            Conflict,
            "resize the device on the host, and leave out --size here",
        ),

        Error::SourceEmpty { .. } => {
            class("source_empty", UnsafeSource, "give the volume a size first")
        }
        Error::SourceKind { .. } => class("source_kind", UnsafeSource, None),
        Error::SourceMounted { .. } => class("source_mounted", UnsafeSource, "unmount it first"),
        Error::SourceHeld { .. } => class("source_held", UnsafeSource, "end its other use first"),
        Error::SourceIsRoot { .. } => {
            class("source_is_root", UnsafeSource, "use a volume on another disk")
        }
        Error::SourceStacked { .. } => class(
            "source_stacked",
            UnsafeSource,
            "name the file in the directory that the overlay shows, or move it to another file system",
        ),
        Error::SourceUnchecked { .. } => class(
            "source_unchecked",
            UnsafeSource,
            "run it as root, where /dev has all these devices and the device cgroup allows them",
        ),
        Error::SourceChanged { .. } => {
            class("source_changed", UnsafeSource, "try again when it no longer changes")
        }
        Error::SourceReadOnly { .. } => {
            class("source_read_only", UnsafeSource, "plug it with --read-only")
        }
        Error::SourceUnaligned { .. } => {
            class("source_unaligned", UnsafeSource, "resize it to a multiple of its block size")
        }
        Error::SourceBlockSize { .. } => class(
            "source_block_size",
            UnsafeSource,
            "use one with logical blocks of 512 to 4096 bytes (`blockdev --getss`)",
        ),
        Error::SourceRefused { refusal, .. } if refusal.is_protection() => {
            class("source_read_only", UnsafeSource, refusal.remedy())
        }
        Error::SourceRefused { refusal, .. } => class("denied", PermissionDenied, refusal.remedy()),
        Error::SourceFormat { .. } => class(
            "source_format",
            UnsafeSource,
            "make a raw image of it (`qemu-img convert -O raw`), or plug its bytes as they are with \
             --image-format raw, also if a container has written them",
        ),
        Error::SourceReplaced { .. } => class(
            "source_replaced",
            UnsafeSource,
            "QEMU still has the former one: unplug it, or move it back to its path",
        ),
        Error::ImageLimit { .. } => class(
            "image_limit",
            UnsafeSource,
            "free space on the file system, or move the image to another one",
        ),

        Error::TimedOut { .. } | Error::AgentTimedOut { .. } | Error::AgentNotResponding { .. } => {
            class("timed_out", TimedOut, LONGER_TIMEOUT)
        }

        Error::Incomplete { .. } => class(
            "incomplete",
            Incomplete,
            "run the same command again, or `ecr-runtime block-volume repair`",
        ),
        Error::Unrepaired { .. } => {
            class("incomplete", Incomplete, "remove the cause, and run repair again")
        }
        Error::RecordLost { .. } => class(
            "record_lost",
            Incomplete,
            "plug it again with the same options, which rolls back what is left, then unplug it",
        ),
        Error::StateUnknown { .. } => class(
            "state_unknown",
            StateUnknown,
            "try again when the agent replies and the container is not paused; `hot-unplug --force \
             --without-guest` frees a volume from a guest that does not reply",
        ),
        Error::SandboxesUnknown { .. } => class(
            "sandbox_unknown",
            StateUnknown,
            "the error of each sandbox says why; `ecr-runtime check --sandbox` says what to do",
        ),
        Error::IncompleteVolume { .. } => class(
            "incomplete_volume",
            Incomplete,
            "plug it again with the same options, unplug it, or run repair",
        ),

        Error::Guest { reason, .. } => of_guest(*reason),
        Error::InUse { .. } => of_guest(Reason::REASON_BUSY),
        Error::NoPlugin => class(
            "no_plugin",
            Unsupported,
            "the VM's agent must be built with the agent-plugin crate",
        ),
        Error::NoMethod { .. } => {
            class("no_method", Unsupported, "build the VM's agent with a newer plugin")
        }
        Error::NoMounts { .. } => class(
            "no_mounts",
            Unsupported,
            "build the VM's agent with a newer plugin, or give the container a device with \
             --device-path",
        ),
        Error::NoFileSystem { .. } => of_guest(Reason::REASON_NO_FILE_SYSTEM),
        Error::ApiLevel { .. } => {
            class("api_level", VersionSkew, "use versions of the same release on both sides")
        }
        Error::AgentStatus { .. } => class("agent_status", Unexpected, None),
        Error::AgentLost { .. } => class("agent_lost", Unreachable, None),
        Error::AgentUnreachable { .. } => {
            class("agent_unreachable", Unreachable, "check that the sandbox is running")
        }
        Error::AgentUnknown { .. } => {
            class("agent_unknown", Unreachable, "name the agent's address with --agent")
        }
        Error::AgentReply { .. } => class("agent_answer", Unexpected, None),

        Error::Qmp(error) => of_qmp(error),
        Error::NoQmpSocket { .. } => class(
            "qmp_unreachable",
            Unreachable,
            "let Kata start QEMU by ecr-qemu (`ecr-runtime node enable`), or name a QMP socket with \
             --qmp, or the user of a rootless VMM with --vmm-user",
        ),
        Error::NotQemu { .. } => {
            class("not_qemu", Unsupported, "use a runtime class whose hypervisor is QEMU")
        }
        Error::NodeInUse { .. } => class(
            "busy_in_qemu",
            Busy,
            "wait until it has ended (hot-unplug --wait does), or end it in QEMU: block-job-cancel, \
             block-export-del, nbd-server-stop, or blockdev-del of a node",
        ),
        Error::NodeMoved { .. } => class(
            "moved_in_qemu",
            Conflict,
            "unplug it, and plug what it was moved to (`ecr-runtime block-volume inspect` shows it)",
        ),
        Error::NoController => class(
            "no_controller",
            Unsupported,
            "set block_device_driver = \"virtio-scsi\" in Kata's configuration",
        ),
        Error::NoAddress => class("no_address", Unsupported, "unplug other volumes first"),
        Error::ResizeReadOnly { .. } => class(
            "read_only_volume",
            Unsupported,
            "unplug it, resize the source, and plug it again",
        ),

        Error::Untrusted(why) => of_untrusted(why),
        Error::DescriptorLimit { .. } => class("descriptor_limit", PermissionDenied, RAISE_LIMIT),
        Error::Denied { .. } => class("denied", PermissionDenied, RUN_AS_ROOT),
        Error::System { .. } => class("system", Unexpected, None),
        Error::NotAudited { .. } => class(
            "not_audited",
            Unexpected,
            "let the file or socket of --audit-log take records (free space, a reader), or name \
             another one",
        ),
        Error::AuditLost { .. } => class(
            "audit_lost",
            AuditLost,
            "only the record is lost: what the command did stays done; let the audit log take records \
             again",
        ),
        Error::OutputLost { .. } => class(
            "output_lost",
            Unexpected,
            "only the output is lost: what the command did stays done",
        ),
        Error::OutputFile { .. } => class(
            "output_file",
            Unexpected,
            "name a regular file, or a new one, in a directory that can be written",
        ),
        // Only SIGHUP (1), SIGINT (2) and SIGTERM (15) are caught.
        Error::Interrupted { signal, .. } => {
            class("interrupted", Signal(u8::try_from(*signal).unwrap_or(0)), None)
        }
        Error::FaultPoint { .. } => class("fault_point", Unexpected, None),
    }
}

/// The class of an error whose cause is that no file descriptor was free. Any step may be the first
/// to need one, and steps run side by side: which one failed says nothing.
fn of_descriptors(error: &Error) -> Option<Class> {
    // What was lost is the report alone.
    if matches!(error, Error::AuditLost { .. } | Error::OutputLost { .. }) {
        return None;
    }
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            Some(libc::EMFILE) => {
                return Some(class("descriptor_limit", PermissionDenied, RAISE_LIMIT));
            }
            Some(libc::ENFILE) => {
                return Some(class("descriptor_limit", PermissionDenied, RAISE_NODE_LIMIT));
            }
            _ => cause = error.source(),
        }
    }
    None
}

/// The class of a failure that the guest reports.
fn of_guest(reason: Reason) -> Class {
    match reason {
        Reason::REASON_UNSPECIFIED => class("guest_unspecified", Unexpected, None),
        Reason::REASON_INVALID_REQUEST => class("guest_invalid_request", Unexpected, None),
        Reason::REASON_CONTAINER_NOT_FOUND => class(
            "container_not_found",
            NotFound,
            "give the container's whole ID: this host lists no containers of the sandbox that begin \
             with it",
        ),
        Reason::REASON_CONTAINER_NOT_RUNNING => class("container_not_running", NotFound, None),
        Reason::REASON_PATH_TAKEN => class("path_taken", Conflict, OTHER_PATH),
        Reason::REASON_PARENT_MISSING => class(
            "parent_missing",
            NotFound,
            "choose a path whose directories are real ones or do not exist yet",
        ),
        Reason::REASON_CONFLICT => class("other_options", Conflict, REPEAT_OR_UNPLUG),
        Reason::REASON_BUSY => class(
            "busy",
            Busy,
            "end its use in the guest, wait for that with --wait, or detach anyway with --force",
        ),
        Reason::REASON_TIMED_OUT => class("timed_out", TimedOut, LONGER_TIMEOUT),
        Reason::REASON_CANCELLED => {
            class("cancelled", Conflict, "another run has unplugged it in the meantime")
        }
        Reason::REASON_DENIED => class(
            "denied_by_guest",
            Refused,
            "append the rules for block volumes to the agent's policy (`ecr-runtime check --sandbox \
             ID` prints them, if it has none of them), or allow these volumes there \
             (docs/policy.md)",
        ),
        Reason::REASON_IDENTITY_MISMATCH => class("identity_mismatch", Refused, None),
        Reason::REASON_READ_ONLY_FILE_SYSTEM => {
            class("read_only_file_system", Refused, "choose a path on another file system")
        }
        Reason::REASON_NO_SPACE => {
            class("no_space", Refused, "choose a path on another file system")
        }
        Reason::REASON_NO_CONTROLLER => class("no_controller", Unsupported, None),
        Reason::REASON_UNSUPPORTED => class("unsupported", Unsupported, None),
        Reason::REASON_SYSTEM => class("guest_system", Unexpected, None),
        Reason::REASON_FILE_SYSTEM_MISMATCH => class(
            "file_system_mismatch",
            Refused,
            "name the type that it has with --fs-type, or leave that out",
        ),
        Reason::REASON_NO_FILE_SYSTEM => class(
            "no_file_system",
            Refused,
            "make one first, which destroys what the volume holds: `mkfs.ext4 VOLUME` on the host, \
             or plug it with --device-path and make one in the container",
        ),
        Reason::REASON_FILE_SYSTEM_REFUSED => class(
            "file_system_refused",
            Refused,
            "plug it with --device-path to check and repair it in a container (fsck), or give the \
             guest a kernel that has what the file system needs",
        ),
        Reason::REASON_OWNERS_INCOMPLETE => class(
            "owners_incomplete",
            TimedOut,
            "run it again with a longer --timeout: it continues where it stopped",
        ),
    }
}

fn of_untrusted(why: &Untrusted) -> Class {
    match why {
        Untrusted::Path { .. } => class(
            "untrusted_path",
            PermissionDenied,
            "let it belong to root and be writable by root alone (`chown root`, `chmod go-w`), or name \
             the user of a rootless VMM with --vmm-user",
        ),
        Untrusted::Server { .. } => class(
            "untrusted_server",
            PermissionDenied,
            "name a socket of this sandbox's own QEMU with --qmp, and the user of a rootless VMM with \
             --vmm-user",
        ),
    }
}

/// The class of an error of the QMP client.
fn of_qmp(error: &QmpError) -> Class {
    match error {
        QmpError::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            class("denied", PermissionDenied, RUN_AS_ROOT)
        }
        QmpError::Connect { .. } => {
            class("qmp_unreachable", Unreachable, "check that the sandbox is running")
        }
        QmpError::Untrusted(why) => of_untrusted(why),
        QmpError::Held { .. } => class(
            "qmp_held",
            QmpHeld,
            "Kata's shim holds qmp.sock for the life of the VM: let Kata start QEMU by ecr-qemu, \
             which adds a second QMP socket (docs/operations.md), or name another one with --qmp",
        ),
        QmpError::Silent { .. } => class("timed_out", TimedOut, "QEMU may be stopped"),
        QmpError::NotQmp { .. } => class("not_qemu", Unsupported, None),
        QmpError::TimedOut { .. } => {
            class("timed_out", TimedOut, "QEMU may be stopped or overloaded")
        }
        QmpError::Disconnected { .. } => {
            class("qmp_lost", Unreachable, "check whether QEMU is running")
        }
        QmpError::Refused { .. } | QmpError::Answer { .. } => {
            class("qemu_refused", Unexpected, None)
        }
    }
}
