//! The state of a container, as the agent in the guest reports it.

use block_volume_api::block_volume::{ContainerStatus, Inspected};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// It runs.
    Running,
    /// It is paused: what it has of a volume cannot be told.
    Paused,
    /// Its first process has ended.
    Stopped,
    /// It was created and not started.
    Created,
    /// The agent has no container of this ID.
    UnknownId,
    /// It exists, and the agent cannot open it: what it has of a volume cannot be told.
    Unreachable,
}

impl ContainerState {
    /// What the guest reports. A plugin of an earlier version tells only whether it runs.
    pub(crate) fn from_reply(seen: &Inspected) -> Self {
        match seen.container_status.enum_value() {
            Ok(ContainerStatus::CONTAINER_STATUS_UNSPECIFIED) if seen.container_running => {
                Self::Running
            }
            Ok(ContainerStatus::CONTAINER_STATUS_UNSPECIFIED) => Self::Stopped,
            Ok(ContainerStatus::CONTAINER_STATUS_RUNNING) => Self::Running,
            Ok(ContainerStatus::CONTAINER_STATUS_PAUSED) => Self::Paused,
            Ok(ContainerStatus::CONTAINER_STATUS_STOPPED) => Self::Stopped,
            Ok(ContainerStatus::CONTAINER_STATUS_CREATED) => Self::Created,
            Ok(ContainerStatus::CONTAINER_STATUS_UNKNOWN_ID) => Self::UnknownId,
            // A later version of the plugin may have more: not understood is not gone.
            Ok(ContainerStatus::CONTAINER_STATUS_UNREACHABLE) | Err(_) => Self::Unreachable,
        }
    }

    /// The state for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Created => "created, not started",
            Self::UnknownId => "gone",
            Self::Unreachable => "unreachable",
        }
    }

    /// The state as a label of Prometheus, as in JSON.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Created => "created",
            Self::UnknownId => "unknown_id",
            Self::Unreachable => "unreachable",
        }
    }
}

#[cfg(test)]
mod tests {
    use protobuf::EnumOrUnknown;

    use super::*;

    fn state(status: EnumOrUnknown<ContainerStatus>, container_running: bool) -> ContainerState {
        let seen = Inspected { container_status: status, container_running, ..Default::default() };
        ContainerState::from_reply(&seen)
    }

    #[test]
    fn an_older_plugin_tells_whether_it_runs() {
        assert_eq!(state(EnumOrUnknown::default(), true), ContainerState::Running);
        assert_eq!(state(EnumOrUnknown::default(), false), ContainerState::Stopped);
    }

    #[test]
    fn a_state_that_is_not_understood_is_not_gone() {
        assert_eq!(state(EnumOrUnknown::from_i32(99), false), ContainerState::Unreachable);
        let paused = ContainerStatus::CONTAINER_STATUS_PAUSED.into();
        assert_eq!(state(paused, false), ContainerState::Paused);
    }
}
