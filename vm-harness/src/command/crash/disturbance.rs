//! What disturbs a run of `ecr-runtime` at a fault point.

use super::{
    fault_point::{FaultPoint, GUEST_POINTS, HOST_POINTS, MOUNT_POINTS, Verb},
    remedy::Remedy,
    volume_kind::VolumeKind,
};

/// An event that ends or stops a run, or a command that runs at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// `kill -9` of `ecr-runtime`.
    RunKilled,
    /// The plugin's thread in the agent panics.
    PluginPanics,
    /// QEMU is stopped until every timeout has passed, and then continued.
    QemuStopped,
    /// The container's first process is killed.
    ContainerKilled,
    /// The container is killed and removed.
    ContainerRemoved,
    /// The same command runs at the same time.
    SameCommand,
    /// The run is killed while the same command waits for the lock.
    SameCommandAfterKill,
    /// The opposite command runs at the same time.
    OppositeCommand,
    /// Another volume is plugged at the same path at the same time.
    SamePath,
    /// Another volume is plugged at another path at the same time.
    OtherVolume,
    /// `kill -9` of QEMU.
    QemuKilled,
    /// The agent is killed. It is PID 1, so the guest's kernel panics and QEMU ends.
    AgentKilled,
}

impl Disturbance {
    pub(super) const ALL: [Self; 12] = [
        Self::RunKilled,
        Self::PluginPanics,
        Self::QemuStopped,
        Self::ContainerKilled,
        Self::ContainerRemoved,
        Self::SameCommand,
        Self::SameCommandAfterKill,
        Self::OppositeCommand,
        Self::SamePath,
        Self::OtherVolume,
        Self::QemuKilled,
        Self::AgentKilled,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RunKilled => "ecr-runtime killed",
            Self::PluginPanics => "plugin's thread panics",
            Self::QemuStopped => "QEMU stopped",
            Self::ContainerKilled => "container killed",
            Self::ContainerRemoved => "container removed",
            Self::SameCommand => "same command at the same time",
            Self::SameCommandAfterKill => "killed while the same command waits",
            Self::OppositeCommand => "opposite command at the same time",
            Self::SamePath => "other volume at the same path and time",
            Self::OtherVolume => "other volume at the same time",
            Self::QemuKilled => "QEMU killed",
            Self::AgentKilled => "agent killed",
        }
    }

    /// Returns the fault points at which it is tested, for volumes of this kind.
    pub(super) fn fault_points(self, kind: VolumeKind) -> impl Iterator<Item = FaultPoint> {
        let (points, more): (&[FaultPoint], &[FaultPoint]) = match (self, kind) {
            (Self::PluginPanics, VolumeKind::Device) => (&GUEST_POINTS, &[]),
            (Self::PluginPanics, VolumeKind::FileSystem) => (&GUEST_POINTS, &MOUNT_POINTS),
            _ => (&HOST_POINTS, &[]),
        };
        points
            .iter()
            .chain(more)
            .copied()
            .filter(move |point| self != Self::SamePath || point.verb == Verb::HotPlug)
    }

    /// Returns the remedies that are tested after it.
    pub(super) fn remedies(self, verb: Verb) -> &'static [Remedy] {
        match self {
            Self::RunKilled | Self::PluginPanics | Self::QemuStopped if verb == Verb::HotPlug => {
                &[Remedy::Again, Remedy::Repair, Remedy::Unplug]
            }
            Self::RunKilled | Self::PluginPanics | Self::QemuStopped => {
                &[Remedy::Again, Remedy::Repair]
            }
            // Nothing can be plugged into a container that is gone.
            Self::ContainerKilled | Self::ContainerRemoved => &[Remedy::Unplug, Remedy::Repair],
            _ => &[Remedy::None],
        }
    }

    /// Whether the VM ends with it.
    pub(super) fn ends_vm(self) -> bool {
        matches!(self, Self::QemuKilled | Self::AgentKilled)
    }

    /// Whether the container ends with it.
    pub(super) fn ends_container(self) -> bool {
        matches!(self, Self::ContainerKilled | Self::ContainerRemoved)
    }
}
