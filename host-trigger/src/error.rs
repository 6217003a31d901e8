//! Every error, each with a reason for programs, an exit status and, if there is one, a remedy.

use std::{ffi::OsString, io, path::PathBuf};

use block_volume_api::{API_LEVEL, block_volume::Reason};
use block_volume_qmp::{QmpError, Untrusted};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod catalog;
mod chain;
mod refusal;

pub use catalog::Class;
pub use chain::{Chain, Step};
pub use refusal::Refusal;

use crate::{guest_holder::GuestHolder, sanitize::sanitize};

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
    #[error("no sandbox is known that has container {container:?}")]
    SandboxUnknown { container: String },
    #[error("neither a sandbox nor a container is named")]
    SandboxNotNamed,
    #[error("{container} is the sandbox's own pause container")]
    PauseContainer { container: String },
    #[error("the device path {path:?} is not valid: {why}")]
    DevicePath { path: String, why: &'static str },
    #[error("the mount path {path:?} is not valid: {why}")]
    MountPath { path: String, why: &'static str },
    #[error(
        "volume {volume:?} is given two paths, the device path {device_path} and the mount path \
         {mount_path}"
    )]
    TwoPaths { volume: PathBuf, device_path: String, mount_path: String },
    #[error("the mount option {option:?} {rule}")]
    MountOption { option: String, rule: &'static str },
    #[error("the mount info {path:?} cannot be used: {why}")]
    MountInfo { path: PathBuf, why: String },
    #[error("{volumes} volumes and {paths} paths do not pair up")]
    Unpaired { volumes: usize, paths: usize },
    #[error("{what} {value:?} is named twice")]
    Repeated { what: &'static str, value: String },
    #[error("{count} volumes are more than the 256 that one call takes")]
    TooMany { count: usize },
    #[error("several volumes have the path {path}: {}", .found.join(", "))]
    PathAmbiguous { path: String, found: Vec<String> },
    #[error("volume {volume} is shared and has several attachments: {}", .found.join(", "))]
    VolumeAmbiguous { volume: String, found: Vec<String> },
    #[error(
        "volume {volume} is shared, and without the guest all its attachments lose it: {}",
        .found.join(", ")
    )]
    WholeVolume { volume: String, found: Vec<String> },
    #[error("the agent's address {address:?} is not valid")]
    AgentAddress { address: String },
    #[error("the VM has several virtio-scsi controllers: {}", .found.join(", "))]
    ControllerAmbiguous { found: Vec<String> },
    #[error("the VM has no virtio-scsi controller {name:?}; it has: {}", .found.join(", "))]
    ControllerUnknown { name: String, found: Vec<String> },
    #[error("the audit log {path:?} is {kind}, neither a regular file nor a socket")]
    AuditLog { path: PathBuf, kind: &'static str },

    #[error("{why}")]
    InvalidLimits { why: String },

    // Kata's configuration of this node.
    #[error("no configuration of Kata Containers is found in {}", .searched.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoKataConfiguration { searched: Vec<PathBuf> },
    #[error("no runtime class of Kata's is called {name:?}; there are: {}", .found.join(", "))]
    RuntimeClassUnknown { name: String, found: Vec<String> },
    #[error("no runtime class uses QEMU: {}", .classes.join(", "))]
    NoQemuClass { classes: Vec<String> },
    #[error("{path:?} cannot be the wrapper: {why}")]
    WrapperUnusable { path: PathBuf, why: String },
    #[error("a drop-in in {directory:?} would also change {}", .changes.join(", "))]
    MixedConfigurations { directory: PathBuf, changes: Vec<String> },
    #[error("{file:?} cannot be used: {why}")]
    ConfigurationUnreadable { file: PathBuf, why: String },
    #[error(
        "{file:?} names no absolute path of QEMU, so it is not known what ecr-qemu is to become"
    )]
    NoQemuPath { file: PathBuf },
    #[error("{file:?} is not changed: {why}")]
    ForeignDropIn { file: PathBuf, why: String },
    #[error("{file:?} sets QEMU's path after zz-ecr-runtime.toml and would override it")]
    LaterDropIn { file: PathBuf },
    #[error(
        "{record:?} records {recorded:?}, and the configurations in {directory:?} have {path:?}"
    )]
    OtherRecord { record: PathBuf, recorded: PathBuf, directory: PathBuf, path: PathBuf },

    // Pods, by name.
    #[error("the address of the CRI {endpoint:?} is not valid")]
    CriEndpoint { endpoint: OsString },
    #[error("there are several container engines: {}", paths(.found))]
    CriAmbiguous { found: Vec<PathBuf> },
    #[error("there is no container engine's socket: {}", paths(.searched))]
    NoCri { searched: Vec<PathBuf> },
    #[error("the container engine at {socket:?} is not reachable")]
    CriUnreachable { socket: PathBuf, source: io::Error },
    #[error("the container engine at {socket:?} did not reply to {method} in time")]
    CriTimedOut { socket: PathBuf, method: &'static str },
    #[error("what listens on {socket:?} does not speak the CRI: {}", sanitize(.why))]
    NotCri { socket: PathBuf, why: String },
    #[error("the container engine at {socket:?} does not serve version 1 of the CRI: {}", sanitize(.message))]
    CriUnimplemented { socket: PathBuf, message: String },
    #[error("the container engine at {socket:?} replied to {method} with status {code}: {}", sanitize(.message))]
    CriRefused { socket: PathBuf, method: &'static str, code: u32, message: String },
    #[error("the reply of the container engine at {socket:?} to {method} is not valid: {what}")]
    CriReply { socket: PathBuf, method: &'static str, what: String },
    #[error("there is no pod {pod}{}", others("; there are: ", .elsewhere))]
    PodNotFound { pod: String, elsewhere: Vec<String> },
    #[error("pod {pod} does not run: its sandbox {sandbox} is not ready")]
    PodNotReady { pod: String, sandbox: String },
    #[error("pod {pod} has several sandboxes that are ready: {}", .found.join(", "))]
    PodAmbiguous { pod: String, found: Vec<String> },
    #[error(
        "pod {pod} is not Kata's: there is no sandbox {sandbox} in {}{}",
        paths(.searched),
        others("; its runtime class is ", .handler.as_slice()),
    )]
    NotKata { pod: String, sandbox: String, handler: Option<String>, searched: Vec<PathBuf> },
    #[error("pod {pod} has no container {container:?}{}", others("; it has: ", .found))]
    PodContainerNotFound { pod: String, container: String, found: Vec<String> },
    #[error("container {container:?} of pod {pod} does not run: it is {state}")]
    PodContainerNotRunning { pod: String, container: String, state: &'static str },
    #[error("container {container:?} of pod {pod} runs twice: {}", .found.join(", "))]
    PodContainerTwice { pod: String, container: String, found: Vec<String> },
    #[error("pod {pod} has several containers: {}", .found.join(", "))]
    PodContainerNotNamed { pod: String, found: Vec<String> },
    #[error("no container of pod {pod} runs")]
    PodWithoutContainer { pod: String },
    #[error("container {container:?} of pod {pod} was restarted meanwhile: {id} is gone")]
    PodContainerRestarted { pod: String, container: String, id: String, source: Box<Error> },

    // Not found.
    #[error("there is no sandbox {id:?} in {}", .searched.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" or "))]
    SandboxNotFound { id: String, searched: Vec<PathBuf> },
    #[error("sandbox {sandbox} is still starting: its runtime has not written its state yet")]
    SandboxStarting { sandbox: String },
    #[error("there is no container {id:?} in sandbox {sandbox}")]
    ContainerNotFound { id: String, sandbox: String },
    #[error("there is no block volume {path:?}")]
    SourceNotFound { path: PathBuf },
    #[error("sandbox {sandbox} has no volume {asked}")]
    VolumeNotFound { asked: String, sandbox: String },

    // Conflicts.
    #[error("the path {path} is taken by a {taken_by}")]
    PathTaken { path: String, taken_by: String },
    #[error("volume {volume} is already attached to container {container} at {path}")]
    VolumeTaken { volume: String, container: String, path: String },
    #[error("volume {volume} is already attached with another {}", .differs.join(", "))]
    OtherOptions { volume: String, differs: Vec<&'static str> },
    #[error("the path {path} in container {container} belongs to volume {volume}")]
    PathHoldsVolume { path: String, container: String, volume: String },
    #[error("volume {volume} is attached to container {container}, not to {asked}")]
    OtherContainer { volume: String, container: String, asked: String },
    #[error("another run is attaching volume {volume}")]
    ConcurrentRun { volume: String },
    #[error(
        "QEMU's descriptor set {set} would be that of volume {volume}, and has a descriptor of \
         another program"
    )]
    SetTaken { volume: String, set: u64 },
    #[error("another run has plugged volume {volume} again during the wait")]
    VolumeChanged { volume: String },
    #[error(
        "volume {volume} was taken without the guest from container {container}, which may still \
         have it at {path}: a new disk could get its device number"
    )]
    AbandonedVolume { volume: String, container: String, path: String },

    #[error("volume {volume} cannot have these limits: {why}")]
    LimitsConflict { volume: String, why: String },
    #[error("volume {volume} has {present} bytes; {asked} would be fewer")]
    WouldShrink { volume: String, asked: u64, present: u64 },
    #[error(
        "volume {volume} is in use in the guest, which loses all beyond {asked} bytes: {}",
        GuestHolder::line(.holders)
    )]
    ShrinkInUse { volume: String, asked: u64, holders: Vec<GuestHolder> },
    #[error("the block device {path:?} has {size} bytes, not {asked}")]
    DeviceSize { path: PathBuf, asked: u64, size: u64 },

    // Unsafe sources.
    #[error("{path:?} is empty")]
    SourceEmpty { path: PathBuf },
    #[error("{path:?} is a {kind}, neither a block device nor a regular file")]
    SourceKind { path: PathBuf, kind: &'static str },
    #[error("{path:?}{chain} is mounted on {mount_point}")]
    SourceMounted { path: PathBuf, chain: Chain, mount_point: String },
    #[error("{path:?}{chain} is held by {holder}")]
    SourceHeld { path: PathBuf, chain: Chain, holder: String },
    #[error("{path:?}{chain} is on a disk of this host's root file system")]
    SourceIsRoot { path: PathBuf, chain: Chain },
    #[error(
        "{path:?}{chain} is on an overlay or another file system that shows the files of others"
    )]
    SourceStacked { path: PathBuf, chain: Chain },
    #[error("{path:?}{chain} cannot be checked: {why}")]
    SourceUnchecked { path: PathBuf, chain: Chain, why: String },
    #[error("{path:?} changed while it was checked")]
    SourceChanged { path: PathBuf },
    #[error("{path:?} is read-only")]
    SourceReadOnly { path: PathBuf },
    #[error("the size of {path:?}, {size} bytes, is not a multiple of {unit}, its block size")]
    SourceUnaligned { path: PathBuf, size: u64, unit: u32 },
    #[error("{path:?} has logical blocks of {size} bytes, which no SCSI disk of a guest can have")]
    SourceBlockSize { path: PathBuf, size: u32 },
    #[error("{path:?} cannot be opened{}: {refusal}", if *.write { " for writing" } else { "" })]
    SourceRefused { path: PathBuf, write: bool, refusal: Refusal },
    #[error("{path:?} begins or ends like a {format} image, and QEMU would take it for a raw one")]
    SourceFormat { path: PathBuf, format: &'static str },

    #[error("{path:?} is no longer the volume that was attached")]
    SourceReplaced { path: PathBuf },
    #[error("the file system of the image {path:?} does not take {size} bytes")]
    ImageLimit { path: PathBuf, size: u64, source: QmpError },

    // Time.
    #[error("timed out waiting for {what}")]
    TimedOut { what: String },
    #[error("the agent did not reply to {method} in time")]
    AgentTimedOut { method: &'static str },
    #[error("the agent's address {address} does not respond")]
    AgentNotResponding { address: String },

    // What could not be rolled back or repaired.
    #[error("{cause}; the rollback is incomplete: {}", .left.join("; "))]
    Incomplete { cause: Box<Error>, left: Vec<String> },

    #[error("not everything could be repaired: {}", .left.join("; "))]
    Unrepaired { left: Vec<String> },
    #[error("the record of volume {volume} is lost: its state in the guest is not known")]
    RecordLost { volume: String },

    #[error("the guest could not tell the state of volume {}", .volumes.join(", "))]
    StateUnknown { volumes: Vec<String> },

    #[error("the volumes of sandbox {} could not be listed as a whole", .sandboxes.join(", "))]
    SandboxesUnknown { sandboxes: Vec<String> },

    #[error("volume {volume} is incomplete: an earlier run was interrupted")]
    IncompleteVolume { volume: String },

    // The guest and its agent.
    #[error("{}: {}", speaker(*.reason), sanitize(.message))]
    Guest { reason: Reason, message: String, undone: bool, volume: String },
    #[error("volume {volume} is in use in the guest: {}", GuestHolder::line(.holders))]
    InUse { volume: String, holders: Vec<GuestHolder> },
    #[error("the agent has no block volume plugin")]
    NoPlugin,
    #[error("the agent's block volume plugin does not support {method}")]
    NoMethod { method: &'static str },
    #[error("the agent's block volume plugin cannot mount file systems: {path} would get a device")]
    NoMounts { path: String },
    #[error(
        "the guest reports: {}; `mkfs.{fs_type} {path:?}` on the host would make a file system, and \
         destroy what is there",
        sanitize(.message)
    )]
    NoFileSystem { path: PathBuf, fs_type: String, message: String },
    #[error("the agent's plugin speaks API level {guest}, this program {API_LEVEL}")]
    ApiLevel { guest: u32 },
    #[error("the agent replied to {method} with {code}: {}", sanitize(.message))]
    AgentStatus { method: &'static str, code: String, message: String },
    #[error("the connection to the agent ended before the reply to {method}")]
    AgentLost { method: &'static str },
    #[error("the agent at {address} is not reachable")]
    AgentUnreachable { address: String, source: io::Error },
    #[error("the agent's address is not known: {why}")]
    AgentUnknown { why: String },
    #[error("the reply to {method} does not match the request: {what}")]
    AgentReply { method: &'static str, what: String },

    // QEMU.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    #[error("no QMP socket of sandbox {sandbox} is known")]
    NoQmpSocket { sandbox: String },
    #[error("sandbox {sandbox} is run by {hypervisor}, not by QEMU")]
    NotQemu { sandbox: String, hypervisor: String },
    #[error("volume {volume} is in use in QEMU: {}", sanitize(&.users.join("; ")))]
    NodeInUse { volume: String, users: Vec<String> },
    #[error("another program has moved volume {volume} to the block node {node:?} in QEMU")]
    NodeMoved { volume: String, node: String },
    #[error("the VM has no virtio-scsi controller")]
    NoController,
    #[error("the VM has no free SCSI address")]
    NoAddress,

    #[error("volume {volume} is attached read-only, and QEMU resizes only what it can write")]
    ResizeReadOnly { volume: String },

    // The host.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    #[error("{limit} files may be open (`ulimit -n`), of which {open} are, and that is too few")]
    DescriptorLimit { limit: u64, open: u64 },
    #[error("{call} {path:?} is not permitted")]
    Denied { call: &'static str, path: PathBuf, source: io::Error },
    #[error("{call} {path:?} failed")]
    System { call: &'static str, path: PathBuf, source: io::Error },
    #[error("the audit record could not be written, and nothing was done")]
    NotAudited { source: io::Error },
    #[error("the audit record of what was done could not be written")]
    AuditLost { source: io::Error },
    #[error("the result could not be written to standard output")]
    OutputLost { source: io::Error },
    #[error("the result could not be written to {path:?}")]
    OutputFile { path: PathBuf, source: io::Error },
    #[error("interrupted by {name}")]
    Interrupted { signal: i32, name: &'static str },
    #[error("fault point {point}")]
    FaultPoint { point: &'static str },
}

/// Paths in a sentence.
fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What there is in place of what was named, if there is anything.
fn others(begin: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{begin}{}", names.join(", ")) }
}

/// Whose words the guest passes on.
fn speaker(reason: Reason) -> &'static str {
    match reason {
        Reason::REASON_DENIED => "the agent's policy refuses the request",
        _ => "the guest reports",
    }
}

impl Error {
    /// An error of a system call on `path`.
    pub fn system(call: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied { call, path, source },
            _ => Self::System { call, path, source },
        }
    }

    /// What a guest reports that has changed nothing.
    pub(crate) fn guest(reason: Reason, message: impl Into<String>) -> Self {
        let (message, volume) = (message.into(), String::new());
        Self::Guest { reason, message, undone: true, volume }
    }

    /// The reason, the exit status and the remedy.
    pub fn class(&self) -> Class {
        catalog::of(self)
    }

    /// The holders of the volume in the guest, where they are the reason.
    pub fn holders(&self) -> &[GuestHolder] {
        match self {
            Self::InUse { holders, .. } | Self::ShrinkInUse { holders, .. } => holders,
            Self::Incomplete { cause, .. } => cause.holders(),
            _ => &[],
        }
    }

    /// The message and its causes on one line, safe for a terminal.
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
        sanitize(&message)
    }
}

/// An error as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorBody {
    /// A stable name for programs.
    pub reason: String,
    /// The exit status.
    pub exit_code: u8,
    /// A message for people.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The holders of the volume in the guest, where they are the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<GuestHolder>,
}

impl From<&Error> for ErrorBody {
    fn from(error: &Error) -> Self {
        let class = error.class();
        Self {
            reason: class.reason.to_owned(),
            exit_code: class.exit_status.code(),
            message: error.message(),
            remedy: class.remedy.map(str::to_owned),
            holders: error.holders().to_vec(),
        }
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
