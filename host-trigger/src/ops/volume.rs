//! A volume as it is reported: in one container, with its state and with what the guest sees of it.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{container_state::ContainerState, file_system::FileSystemUse, place::Place};
use crate::{
    error::ErrorBody,
    guest_holder::GuestHolder,
    left_behind::LeftBehind,
    path_text,
    pod::PodView,
    qemu::{medium::Drive, record::CommitRecord, throttle::Limits, volume_state::VolumeState},
    volume_id::VolumeId,
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
    /// The pod, and the container's name in it, as far as they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodView>,
    /// The path in the container: `device_path`, or `mount_path` and how it is mounted.
    #[serde(flatten)]
    pub place: Place,
    /// The path of the source on the host, as given. One that is not UTF-8 is `bytes:` and the
    /// path, with `\xff` for such a byte and `\\` for a backslash.
    #[serde(serialize_with = "path_text::serialize", deserialize_with = "path_text::deserialize")]
    #[schemars(with = "String")]
    pub source: PathBuf,
    /// The real path behind it, in the same form.
    #[serde(serialize_with = "path_text::serialize", deserialize_with = "path_text::deserialize")]
    #[schemars(with = "String")]
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
    /// The device filter of the container: `none`, `v1` or `bpf`; empty if the volume is mounted,
    /// which gives the container no device.
    pub device_filter: String,
    /// The kind of device node: `mknod` or `bind`; `mount` if there is none.
    pub node: String,
    /// The block node that the disk uses in QEMU, where another program has moved it there by a
    /// mirror or a snapshot. `source` and `source_device` are then its file; absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<String>,
    /// The limits; absent if there are none.
    #[serde(default, skip_serializing_if = "Limits::is_unlimited")]
    pub throttle: Limits,
    /// What `hot-unplug` could not remove in the container; absent if there is nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_behind: Vec<LeftBehind>,
}

impl Volume {
    /// Sets what the device has in QEMU: its limits, and what it was moved to.
    pub(crate) fn set_drive(&mut self, drive: &Drive, id: &VolumeId, state: &VolumeState) {
        self.throttle = drive.limits;
        if let Some(medium) = drive.moved(id, state) {
            self.moved_to = Some(medium.node.clone());
            self.source = medium.file.clone().into();
            self.source_device = medium.file.clone().into();
            self.size = medium.size;
        }
    }

    /// Sets what the guest did for the volume.
    pub(crate) fn with_commit(self, commit: CommitRecord) -> Self {
        Self {
            guest_device: commit.guest_device,
            device_number: format!("{}:{}", commit.major, commit.minor),
            device_filter: commit.filter,
            node: commit.node,
            place: self.place.with_mounted(commit.mounted.as_ref()),
            ..self
        }
    }
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
    /// QEMU has the volume, and what the guest has of it could not be told: it is neither attached
    /// nor gone.
    Unknown {
        /// Why.
        cause: UnknownCause,
    },
    /// The host freed the volume without the guest (`hot-unplug --force --without-guest`), which
    /// may still have its part.
    Abandoned,
}

/// Why the state of a volume is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownCause {
    /// The guest could not be asked: see `guest_error` of the whole reply.
    GuestUnreachable,
    /// The guest could not tell about this volume: see its `guest_error`.
    GuestError,
    /// The container is paused.
    ContainerPaused,
    /// The agent cannot open the container.
    ContainerUnreachable,
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
            Self::Unknown { cause: UnknownCause::GuestUnreachable } => "unknown: guest unreachable",
            Self::Unknown { cause: UnknownCause::GuestError } => "unknown: guest error",
            Self::Unknown { cause: UnknownCause::ContainerPaused } => "unknown: container paused",
            Self::Unknown { cause: UnknownCause::ContainerUnreachable } => {
                "unknown: container unreachable"
            }
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
    /// What the guest could not tell of this volume, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ErrorBody>,
}

/// One volume as the guest sees it. Beside a `guest_error` what is missing is neither present nor
/// gone.
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
    /// The state of the container.
    pub container_state: ContainerState,
    /// Whether the node at the device path is this disk's; of a mount, whether the file system is
    /// mounted there.
    pub node_present: bool,
    /// Whether the device filter lets the container use the disk; always if it is mounted.
    pub allowed: bool,
    /// Temporary device nodes of the plugin.
    pub leftovers: Vec<String>,
    /// The holders of the disk; only `inspect` asks for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holders: Option<Vec<GuestHolder>>,
    /// Why the holders could not be told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub holders_unknown: String,
    /// The file system, if it is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FileSystemUse>,
}
