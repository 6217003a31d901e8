//! A volume as it is reported: in one container, with its state and with what the guest sees of it.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::{
    error::ErrorBody,
    guest_holder::GuestHolder,
    left_behind::LeftBehind,
    qemu::{record::CommitRecord, throttle::Limits},
};

/// One volume in one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Volume {
    /// The volume ID, which is the disk's serial number in the guest.
    pub id: String,
    /// The sandbox's ID.
    pub sandbox: String,
    /// The container's ID.
    pub container: String,
    /// The device path in the container.
    pub device_path: String,
    /// The path of the source on the host, as given.
    #[serde(serialize_with = "lossy")]
    pub source: PathBuf,
    /// The real path behind it.
    #[serde(serialize_with = "lossy")]
    pub source_device: PathBuf,
    /// The size in bytes.
    pub size: u64,
    /// Whether the container cannot write.
    pub read_only: bool,
    /// Whether the volume has several attachments.
    pub shared: bool,
    /// The disk's address in the VM.
    pub scsi: Scsi,
    /// The guest kernel's name of the disk, such as `sda`.
    pub guest_device: String,
    /// The device number in the guest, such as `8:16`.
    pub device_number: String,
    /// The device filter of the container: `none`, `v1` or `bpf`.
    pub device_filter: String,
    /// The kind of device node: `mknod` or `bind`.
    pub node: String,
    /// The limits; absent if there are none.
    #[serde(default, skip_serializing_if = "Limits::is_unlimited")]
    pub throttle: Limits,
    /// What `hot-unplug` could not remove in the container; absent if there is nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_behind: Vec<LeftBehind>,
}

impl Volume {
    /// Sets what the guest did for the volume.
    pub(crate) fn with_commit(self, commit: CommitRecord) -> Self {
        Self {
            guest_device: commit.guest_device,
            device_number: format!("{}:{}", commit.major, commit.minor),
            device_filter: commit.filter,
            node: commit.node,
            ..self
        }
    }
}

/// Serializes a path; JSON has no bytes, so what is not UTF-8 is replaced.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The address of a disk on a virtio-scsi controller.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scsi {
    /// QEMU's ID of the controller, such as `scsi0`.
    pub controller: String,
    /// The target.
    pub target: u32,
    /// The logical unit.
    pub lun: u32,
}

/// The state of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// All parts exist, as far as they could be checked.
    Attached,
    /// A part is missing: a run was interrupted, or something removed a part.
    Incomplete,
    /// The volume is attached, but not to a container that runs now.
    Stale {
        /// What happened to the container.
        cause: Cause,
    },
    /// The state could not be determined. Reserved.
    Unknown,
    /// The host freed the volume without the guest. Reserved.
    Abandoned,
}

/// Why a volume is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The container does not run any more.
    ContainerGone,
    /// A container of the same ID was started later.
    ContainerRestarted,
}

impl State {
    /// The state for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Incomplete => "incomplete",
            Self::Stale { cause: Cause::ContainerGone } => "stale: container gone",
            Self::Stale { cause: Cause::ContainerRestarted } => "stale: container restarted",
            Self::Unknown => "unknown",
            Self::Abandoned => "abandoned",
        }
    }
}

/// One volume with its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ListedVolume {
    /// As for `hot-plug`; what is not known of an incomplete volume is empty or zero.
    #[serde(flatten)]
    pub volume: Volume,
    /// The state and its cause.
    #[serde(flatten)]
    pub state: State,
    /// What the guest reports; absent if it was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestView>,
    /// Why the guest does not report this volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ErrorBody>,
}

/// One volume as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestView {
    /// The disk exists and has the volume's serial number.
    pub disk_present: bool,
    /// The disk's size in bytes.
    pub size: u64,
    /// Whether the guest's kernel refuses writes.
    pub read_only: bool,
    /// Whether the container runs.
    pub container_running: bool,
    /// Whether the node at the device path is this disk's.
    pub node_present: bool,
    /// Whether the device filter lets the container use the disk.
    pub allowed: bool,
    /// Temporary device nodes of the plugin.
    pub leftovers: Vec<String>,
    /// The holders of the disk; only `inspect` asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holders: Option<Vec<GuestHolder>>,
}
