//! The fault points of a hot-plug and a hot-unplug, in `ecr-runtime` and in the plugin, at which a
//! run is disturbed.

use super::volume_state::VolumeState;

/// The command that is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    HotPlug,
    HotUnplug,
}

impl Verb {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HotPlug => "hot-plug",
            Self::HotUnplug => "hot-unplug",
        }
    }

    /// Returns the state of the volume after the command.
    pub(super) fn end(self) -> VolumeState {
        match self {
            Self::HotPlug => VolumeState::Attached,
            Self::HotUnplug => VolumeState::Gone,
        }
    }

    /// Returns the state of the volume before the command.
    pub(super) fn start(self) -> VolumeState {
        match self {
            Self::HotPlug => VolumeState::Gone,
            Self::HotUnplug => VolumeState::Attached,
        }
    }
}

/// One fault point.
#[derive(Debug, Clone, Copy)]
pub(super) struct FaultPoint {
    pub(super) verb: Verb,
    /// Its name, as in `ECR_RUNTIME_FAULT` and `/run/ecr-fault`.
    pub(super) name: &'static str,
    /// The state of the volume if the run ends here.
    pub(super) leaves: VolumeState,
}

const fn plug(name: &'static str, leaves: VolumeState) -> FaultPoint {
    FaultPoint { verb: Verb::HotPlug, name, leaves }
}

const fn unplug(name: &'static str, leaves: VolumeState) -> FaultPoint {
    FaultPoint { verb: Verb::HotUnplug, name, leaves }
}

/// The fault points of `ecr-runtime`.
pub(super) const HOST_POINTS: [FaultPoint; 18] = [
    plug("after-preflight", VolumeState::Gone),
    plug("after-start", VolumeState::Gone),
    plug("after-add-fd", VolumeState::Incomplete),
    plug("after-blockdev-add", VolumeState::Incomplete),
    plug("after-ready", VolumeState::Incomplete),
    plug("after-device-add", VolumeState::Incomplete),
    plug("after-go", VolumeState::Incomplete),
    plug("after-prepared", VolumeState::Incomplete),
    plug("after-record", VolumeState::Incomplete),
    plug("after-attach", VolumeState::Incomplete),
    plug("after-commit", VolumeState::Attached),
    unplug("before-detach", VolumeState::Attached),
    // From here on QEMU and the guest remove the disk at the same time.
    unplug("after-released", VolumeState::Incomplete),
    unplug("remove-before-device-deleted", VolumeState::Incomplete),
    unplug("remove-after-device-del", VolumeState::Incomplete),
    unplug("after-detach", VolumeState::Incomplete),
    unplug("remove-after-blockdev-del", VolumeState::Incomplete),
    unplug("after-remove", VolumeState::Gone),
];

/// The fault points of the plugin in the guest, within one step of `ecr-runtime`. The plugin rolls
/// back a failed attach itself, and leaves a failed detach as it is.
pub(super) const GUEST_POINTS: [FaultPoint; 17] = [
    plug("attach-after-uevent-socket", VolumeState::Gone),
    plug("attach-after-lookup", VolumeState::Gone),
    plug("attach-after-scan", VolumeState::Gone),
    plug("attach-after-wait", VolumeState::Gone),
    plug("attach-after-verify", VolumeState::Gone),
    plug("attach-after-node", VolumeState::Gone),
    plug("attach-after-filter", VolumeState::Gone),
    plug("attach-after-publish", VolumeState::Gone),
    unplug("detach-after-lookup", VolumeState::Attached),
    unplug("detach-after-release", VolumeState::Attached),
    unplug("detach-after-unlink", VolumeState::Incomplete),
    unplug("detach-after-revoke", VolumeState::Incomplete),
    unplug("detach-after-flush", VolumeState::Incomplete),
    unplug("detach-after-check", VolumeState::Incomplete),
    unplug("detach-after-quiesce", VolumeState::Incomplete),
    unplug("detach-after-released", VolumeState::Incomplete),
    unplug("detach-after-delete", VolumeState::Incomplete),
];

/// The plugin's further fault points for volumes that are mounted.
pub(super) const MOUNT_POINTS: [FaultPoint; 2] = [
    unplug("detach-after-sync", VolumeState::Attached),
    unplug("detach-after-unmount", VolumeState::Incomplete),
];
