//! What comes in the way of a run, and when.

use super::step::{GUEST_STEPS, STEPS, Step, Verb};

/// Who ends, stops or rivals a run behind one of its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Actor {
    /// `kill -9` of `ecr-runtime`.
    RunKilled,
    /// The plugin's thread in the agent panics.
    PluginPanics,
    /// QEMU is stopped until every time-out has passed, and goes on then.
    QemuStopped,
    /// The container's first process is killed.
    ContainerKilled,
    /// The container is killed and removed.
    ContainerRemoved,
    /// The same command runs a second time meanwhile.
    SameCommand,
    /// The same command waits for its turn when the run is killed.
    SameCommandAfterKill,
    /// The opposite command runs meanwhile.
    OppositeCommand,
    /// Another volume is plugged at the same path meanwhile.
    SamePath,
    /// Another volume is plugged at another path meanwhile.
    OtherVolume,
    /// `kill -9` of QEMU.
    QemuKilled,
    /// The agent is killed. It is PID 1: the guest's kernel panics, and its QEMU ends.
    AgentKilled,
}

/// What is done after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WayOut {
    /// The same command.
    Again,
    /// `repair`.
    Repair,
    /// `hot-unplug`.
    Unplug,
    /// None is needed.
    None,
}

impl Actor {
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
            Self::SameCommand => "same command meanwhile",
            Self::SameCommandAfterKill => "killed while the same command waits",
            Self::OppositeCommand => "opposite command meanwhile",
            Self::SamePath => "other volume at the same path meanwhile",
            Self::OtherVolume => "other volume meanwhile",
            Self::QemuKilled => "QEMU killed",
            Self::AgentKilled => "agent killed",
        }
    }

    /// The steps behind which it acts.
    pub(super) fn steps(self) -> impl Iterator<Item = Step> {
        let steps: &[Step] = if self == Self::PluginPanics { &GUEST_STEPS } else { &STEPS };
        steps
            .iter()
            .copied()
            .filter(move |step| self != Self::SamePath || step.verb == Verb::HotPlug)
    }

    /// What is tried after it.
    pub(super) fn ways_out(self, verb: Verb) -> &'static [WayOut] {
        match self {
            Self::RunKilled | Self::PluginPanics | Self::QemuStopped if verb == Verb::HotPlug => {
                &[WayOut::Again, WayOut::Repair, WayOut::Unplug]
            }
            Self::RunKilled | Self::PluginPanics | Self::QemuStopped => {
                &[WayOut::Again, WayOut::Repair]
            }
            // Nothing can be plugged into a container that is gone.
            Self::ContainerKilled | Self::ContainerRemoved => &[WayOut::Unplug, WayOut::Repair],
            _ => &[WayOut::None],
        }
    }

    /// The VM ends with it.
    pub(super) fn ends_vm(self) -> bool {
        matches!(self, Self::QemuKilled | Self::AgentKilled)
    }

    pub(super) fn takes_container(self) -> bool {
        matches!(self, Self::ContainerKilled | Self::ContainerRemoved)
    }
}

impl WayOut {
    pub(super) fn name(self, verb: Verb) -> &'static str {
        match self {
            Self::Again => verb.name(),
            Self::Repair => "repair",
            Self::Unplug => "hot-unplug",
            Self::None => "–",
        }
    }
}
