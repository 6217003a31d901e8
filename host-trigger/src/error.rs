//! Everything that can go wrong, each with a reason for programs, an exit code and a way out.

use std::{io, path::PathBuf};

use block_volume_api::{API_LEVEL, block_volume::Reason};

mod class;

pub use class::Class;

use block_volume_qmp::QmpError;

use crate::{guest_holder::GuestHolder, printable::printable};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the variants and their fields are")]
pub enum Error {
    // Usage.
    #[error("{text}")]
    Usage { text: String },
    #[error(
        "the {what} id {id:?} is not valid: letters, digits, '.', '_' and '-' are, without \"..\""
    )]
    InvalidId { what: &'static str, id: String },
    #[error("the {what} id {prefix:?} is ambiguous: {}", .found.join(", "))]
    AmbiguousId { what: &'static str, prefix: String, found: Vec<String> },
    #[error("the container id {container:?} does not tell the sandbox here")]
    SandboxNeeded { container: String },
    #[error("neither the sandbox nor the container is named")]
    NothingNamed,
    #[error("{container} is the sandbox's own pause container")]
    PauseContainer { container: String },
    #[error("the path {path:?} in the container is not valid: {why}")]
    DevicePath { path: String, why: &'static str },
    #[error("{volumes} volumes and {paths} paths in the container do not pair up")]
    Unpaired { volumes: usize, paths: usize },
    #[error("{what} {value:?} is named twice")]
    Repeated { what: &'static str, value: String },
    #[error("{count} volumes are more than the 256 that one call takes")]
    TooMany { count: usize },
    #[error("{path} is the path of several volumes: {}", .found.join(", "))]
    PathAmbiguous { path: String, found: Vec<String> },
    #[error("the volume {volume} is shared: {}", .found.join(", "))]
    VolumeAmbiguous { volume: String, found: Vec<String> },
    #[error("the agent's address {address:?} is not valid")]
    AgentAddress { address: String },
    #[error("the VM has several virtio-scsi controllers: {}", .found.join(", "))]
    ControllerAmbiguous { found: Vec<String> },
    #[error("the VM has no virtio-scsi controller {name:?}, but: {}", .found.join(", "))]
    ControllerUnknown { name: String, found: Vec<String> },

    #[error("{why}")]
    Limits { why: String },

    // Not found.
    #[error("there is no sandbox {id:?} in {}", .searched.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" or "))]
    SandboxNotFound { id: String, searched: Vec<PathBuf> },
    #[error("there is no container {id:?} in sandbox {sandbox}")]
    ContainerNotFound { id: String, sandbox: String },
    #[error("there is no block volume {path:?}")]
    SourceNotFound { path: PathBuf },
    #[error("no volume {asked} is plugged in sandbox {sandbox}")]
    VolumeNotFound { asked: String, sandbox: String },

    // Conflicts.
    #[error("the path {path} in the container is taken by a {taken_by}")]
    PathTaken { path: String, taken_by: String },
    #[error("the volume {volume} is plugged into container {container} at {path} already")]
    VolumeTaken { volume: String, container: String, path: String },
    #[error("the volume {volume} is plugged already, with another {}", .differs.join(", "))]
    OtherOptions { volume: String, differs: Vec<&'static str> },
    #[error("the path {path} in container {container} holds the volume {volume}")]
    PathHoldsVolume { path: String, container: String, volume: String },
    #[error("the volume {volume} is plugged into container {container}, not into {asked}")]
    OtherContainer { volume: String, container: String, asked: String },
    #[error("another run is plugging the volume {volume}")]
    AnotherRun { volume: String },

    #[error("the volume {volume} cannot have these limits: {why}")]
    LimitsConflict { volume: String, why: String },
    #[error("the volume {volume} has {present} bytes, and {asked} are fewer")]
    WouldShrink { volume: String, asked: u64, present: u64 },
    #[error("the block device {path:?} has {size} bytes, not {asked}")]
    DeviceSize { path: PathBuf, asked: u64, size: u64 },

    // Unsafe sources.
    #[error("{path:?} is empty")]
    SourceEmpty { path: PathBuf },
    #[error("{path:?} is a {kind}, neither a block device nor a regular file")]
    SourceKind { path: PathBuf, kind: &'static str },
    #[error("{path:?} is mounted on {mount_point}")]
    SourceMounted { path: PathBuf, mount_point: String },
    #[error("{path:?} is held by {holder}")]
    SourceHeld { path: PathBuf, holder: String },
    #[error("{path:?} is on a disk of this host's root file system")]
    SourceIsRoot { path: PathBuf },
    #[error("{path:?} changed while it was looked at")]
    SourceChanged { path: PathBuf },
    #[error("{path:?} is read-only")]
    SourceReadOnly { path: PathBuf },
    #[error("the size of {path:?}, {size} bytes, is not a multiple of 512")]
    SourceUnaligned { path: PathBuf, size: u64 },

    #[error("{path:?} is not the volume any more that was plugged")]
    SourceReplaced { path: PathBuf },
    #[error("the image {path:?} cannot have {size} bytes where it is")]
    ImageLimit { path: PathBuf, size: u64, source: QmpError },

    // Time.
    #[error("time ran out while waiting for {what}")]
    TimedOut { what: String },
    #[error("the agent did not answer {method} in time")]
    AgentTimedOut { method: &'static str },
    #[error("the agent's address {address} does not answer")]
    AgentSilent { address: String },

    // What could not be taken back.
    #[error("{cause}; and the undo is incomplete: {}", .left.join("; "))]
    Incomplete { cause: Box<Error>, left: Vec<String> },

    #[error("not all is well: {}", .left.join("; "))]
    Unrepaired { left: Vec<String> },
    #[error("the record of volume {volume} is lost: what the guest has of it is not known")]
    RecordLost { volume: String },

    #[error("the volume {volume} is half plugged or half unplugged")]
    HalfPlugged { volume: String },

    // The guest and its agent.
    #[error("the guest says: {}", printable(.message))]
    Guest { reason: Reason, message: String, undone: bool },
    #[error("volume {volume} is in use in the guest: {}", GuestHolder::line(.holders))]
    InUse { volume: String, holders: Vec<GuestHolder> },
    #[error("the agent has no block volume plugin")]
    NoPlugin,
    #[error("the agent's block volume plugin has no {method}")]
    NoMethod { method: &'static str },
    #[error("the agent's plugin speaks API level {guest}, this program {API_LEVEL}")]
    ApiLevel { guest: u32 },
    #[error("the agent answers {method} with {code}: {}", printable(.message))]
    AgentStatus { method: &'static str, code: String, message: String },
    #[error("the connection to the agent ended before {method} was answered")]
    AgentLost { method: &'static str },
    #[error("the agent at {address} is not reachable")]
    AgentUnreachable { address: String, source: io::Error },
    #[error("nothing tells the agent's address: {why}")]
    AgentUnknown { why: String },
    #[error("the answer to {method} does not fit the request: {what}")]
    AgentAnswer { method: &'static str, what: String },

    // QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("sandbox {sandbox} has no QMP socket that is known")]
    NoQmpSocket { sandbox: String },
    #[error("sandbox {sandbox} is run by {hypervisor}, not by QEMU")]
    NotQemu { sandbox: String, hypervisor: String },
    #[error("the VM has no virtio-scsi controller")]
    NoController,
    #[error("the VM has no free SCSI address")]
    NoAddress,

    #[error("the volume {volume} is plugged read-only, and QEMU resizes only what it can write")]
    ResizeReadOnly { volume: String },

    // The host.
    #[error("{call} {path:?} is not permitted")]
    Denied { call: &'static str, path: PathBuf, source: io::Error },
    #[error("{call} {path:?} failed")]
    System { call: &'static str, path: PathBuf, source: io::Error },
    #[error("interrupted by {name}")]
    Interrupted { signal: i32, name: &'static str },
    #[error("the fail point {point} says so")]
    FailPoint { point: &'static str },
}

impl Error {
    /// A system call on `path` failed.
    pub fn system(call: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { call, path, source },
            _ => Self::System { call, path, source },
        }
    }

    /// The reason, the exit code and the hint.
    pub fn class(&self) -> Class {
        let (reason, exit_code, hint) = match self {
            Self::Usage { .. } => ("usage", 2, None),
            Self::InvalidId { .. } => ("invalid_id", 2, None),
            Self::AmbiguousId { .. } => ("ambiguous_id", 2, Some("give more characters of the id")),
            Self::SandboxNeeded { .. } => {
                ("sandbox_needed", 2, Some("name the sandbox with --sandbox"))
            }
            Self::NothingNamed => ("sandbox_needed", 2, Some("name the sandbox with --sandbox")),
            Self::PauseContainer { .. } => {
                ("pause_container", 2, Some("name a container of the workload"))
            }
            Self::DevicePath { .. } => ("invalid_device_path", 2, None),
            Self::Unpaired { .. } => {
                ("unpaired", 2, Some("give one --device-path after each --block-volume"))
            }
            Self::Repeated { .. } => ("repeated", 2, None),
            Self::TooMany { .. } => ("too_many", 2, Some("split the call")),
            Self::PathAmbiguous { .. } => (
                "ambiguous_path",
                2,
                Some("name the container with --container, or the volume with --volume"),
            ),
            Self::VolumeAmbiguous { .. } => {
                ("ambiguous_volume", 2, Some("name one with --device-path and --container"))
            }
            Self::AgentAddress { .. } => (
                "invalid_agent_address",
                2,
                Some("use vsock://CID:PORT, hvsock:///PATH:PORT or unix:///PATH"),
            ),
            Self::ControllerAmbiguous { .. } => {
                ("ambiguous_controller", 2, Some("name one with --controller"))
            }
            Self::ControllerUnknown { .. } => {
                ("unknown_controller", 2, Some("name one of these with --controller"))
            }
            Self::Limits { .. } => ("invalid_limits", 2, None),
            Self::SandboxNotFound { .. } => (
                "sandbox_not_found",
                3,
                Some(
                    "another state directory is given with --run-dir, sockets with --qmp and --agent",
                ),
            ),
            Self::ContainerNotFound { .. } => ("container_not_found", 3, None),
            Self::SourceNotFound { .. } => ("source_not_found", 3, None),
            Self::VolumeNotFound { .. } => (
                "volume_not_found",
                3,
                Some("`ecr-runtime block-volume list` shows what is plugged"),
            ),
            Self::PathTaken { .. } => ("path_taken", 4, Some("choose another --device-path")),
            Self::VolumeTaken { .. } => {
                ("volume_taken", 4, Some("unplug it there first, or share it with --shared"))
            }
            Self::OtherOptions { .. } => {
                ("other_options", 4, Some("unplug it first, or repeat the options"))
            }
            Self::PathHoldsVolume { .. } => ("path_taken", 4, Some("choose another --device-path")),
            Self::OtherContainer { .. } => {
                ("other_container", 4, Some("name that container with --container, or none"))
            }
            Self::AnotherRun { .. } => {
                ("another_run", 4, Some("try again when the other run has ended"))
            }
            Self::LimitsConflict { .. } => (
                "limits_conflict",
                4,
                Some("`ecr-runtime block-volume inspect` shows the limits that it has"),
            ),
            Self::WouldShrink { .. } => (
                "would_shrink",
                4,
                Some("--allow-shrink makes it smaller; what is beyond the new end is lost"),
            ),
            Self::DeviceSize { .. } => (
                "device_size",
                4,
                Some("give the device its size on the host, and leave out --size here"),
            ),
            Self::SourceEmpty { .. } => ("source_empty", 6, Some("give the volume a size first")),
            Self::SourceKind { .. } => ("source_kind", 6, None),
            Self::SourceMounted { .. } => ("source_mounted", 6, Some("unmount it first")),
            Self::SourceHeld { .. } => ("source_held", 6, Some("end its other use first")),
            Self::SourceIsRoot { .. } => {
                ("source_is_root", 6, Some("use a volume on another disk"))
            }
            Self::SourceChanged { .. } => {
                ("source_changed", 6, Some("plug it when nobody changes it any more"))
            }
            Self::SourceReadOnly { .. } => {
                ("source_read_only", 6, Some("plug it with --read-only"))
            }
            Self::SourceUnaligned { .. } => {
                ("source_unaligned", 6, Some("grow the file to a multiple of 512 bytes"))
            }
            Self::SourceReplaced { .. } => (
                "source_replaced",
                6,
                Some("QEMU still has the other one: unplug it, or bring it back to its path"),
            ),
            Self::ImageLimit { .. } => (
                "image_limit",
                6,
                Some("its file system takes no file of this size, or has no space"),
            ),
            Self::TimedOut { .. } | Self::AgentTimedOut { .. } | Self::AgentSilent { .. } => {
                ("timed_out", 7, Some("a longer --timeout may help"))
            }
            Self::Incomplete { .. } => (
                "incomplete",
                8,
                Some("run the same command again, or repair: both begin with what is left"),
            ),
            Self::Unrepaired { .. } => ("incomplete", 8, Some("end the cause, and repair again")),
            Self::RecordLost { .. } => (
                "record_lost",
                8,
                Some("plug it again as before, which takes back what is left, and unplug it then"),
            ),
            Self::HalfPlugged { .. } => (
                "half_plugged",
                8,
                Some("plug it again as before, or unplug it: both take back what is left"),
            ),
            Self::Guest { reason, .. } => class::of_guest(*reason),
            Self::InUse { .. } => class::of_guest(Reason::REASON_BUSY),
            Self::NoPlugin => {
                ("no_plugin", 10, Some("the VM's agent must be built with the agent-plugin crate"))
            }
            Self::NoMethod { .. } => {
                ("no_method", 10, Some("the VM's agent is built with an older plugin"))
            }
            Self::ApiLevel { .. } => {
                ("api_level", 12, Some("use the versions of one release on both sides"))
            }
            Self::AgentStatus { .. } => ("agent_status", 1, None),
            Self::AgentLost { .. } => ("agent_lost", 14, None),
            Self::AgentUnreachable { .. } => {
                ("agent_unreachable", 14, Some("is the sandbox running?"))
            }
            Self::AgentUnknown { .. } => {
                ("agent_unknown", 14, Some("name the agent's address with --agent"))
            }
            Self::AgentAnswer { .. } => ("agent_answer", 1, None),
            Self::Qmp(error) => class::of_qmp(error),
            Self::NoQmpSocket { .. } => {
                ("qmp_unreachable", 14, Some("name a QMP socket with --qmp"))
            }
            Self::NotQemu { .. } => {
                ("not_qemu", 10, Some("only QEMU can be asked to plug a volume"))
            }
            Self::NoController => (
                "no_controller",
                10,
                Some("Kata makes one with block_device_driver = \"virtio-scsi\""),
            ),
            Self::NoAddress => ("no_address", 10, Some("unplug other volumes first")),
            Self::ResizeReadOnly { .. } => {
                ("read_only_volume", 10, Some("unplug it, and plug it again"))
            }
            Self::Denied { .. } => ("denied", 11, Some("run it as root")),
            Self::System { .. } => ("system", 1, None),
            // 128 + n does not leave the range: only 1, 2 and 15 are caught.
            Self::Interrupted { signal, .. } => {
                ("interrupted", 128 + u8::try_from(*signal).unwrap_or(0), None)
            }
            Self::FailPoint { .. } => ("fail_point", 1, None),
        };
        Class { reason, exit_code, hint }
    }

    /// Those who hold the volume in the guest, where that is the reason.
    pub fn holders(&self) -> &[GuestHolder] {
        match self {
            Self::InUse { holders, .. } => holders,
            Self::Incomplete { cause, .. } => cause.holders(),
            _ => &[],
        }
    }

    /// The message and what caused it, on one line, fit for a terminal.
    pub fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = match self {
            // Its text stands for its cause already.
            Self::Qmp(error) => std::error::Error::source(error),
            _ => std::error::Error::source(self),
        };
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        printable(&message)
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
