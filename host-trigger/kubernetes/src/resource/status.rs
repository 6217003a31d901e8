//! What users are told. The controller and the node agent each apply their own fields
//! ([server-side apply](https://kubernetes.io/docs/reference/using-api/server-side-apply/)), so
//! neither overwrites what the other says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    condition::{Condition, ConditionType, Truth},
    spec::BlockVolumeAttachment,
};

/// The reason of `Attached` when a node agent has nothing of the attachment any more.
pub(crate) const DETACHED: &str = "Detached";

/// The state of an attachment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockVolumeAttachmentStatus {
    /// What is true of the attachment.
    #[serde(default)]
    #[schemars(extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["type"],
    ))]
    pub conditions: Vec<Condition>,
    /// What the controller found.
    #[serde(flatten)]
    pub controller: ControllerStatus,
    /// What the node agent did.
    #[serde(flatten)]
    pub node: NodeStatus,
}

/// The fields that the controller writes: where the attachment belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ControllerStatus {
    /// The node of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The UID of the pod: another pod of the same name is another one.
    #[serde(default, rename = "podUID", skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The ID of the container that runs. It tells the node agent of a restart.
    #[serde(default, rename = "containerID", skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// The capacity of the claim. It tells the node agent of a resize.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_capacity: Option<String>,
}

/// The fields that the node agent writes: what is attached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The UID of the pod that the node agent speaks of.
    #[serde(default, rename = "observedPodUID", skip_serializing_if = "Option::is_none")]
    pub observed_pod_uid: Option<String>,
    /// The ID of the volume, which is the serial number of the disk in the guest.
    #[serde(default, rename = "volumeID", skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<String>,
    /// The guest kernel's name of the disk, such as sda.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_device: Option<String>,
    /// The size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub size: Option<i64>,
    /// The file system, if it is mounted and the guest has told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FileSystemStatus>,
    /// The generation of the attachment that the node agent has seen last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// A file system that is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileSystemStatus {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its size in bytes, as df(1) has it: what it keeps for itself is not counted.
    #[schemars(range(min = 0))]
    pub size: i64,
}

impl BlockVolumeAttachment {
    /// The condition of this type.
    pub fn condition(&self, condition_type: ConditionType) -> Option<&Condition> {
        let conditions = &self.status.as_ref()?.conditions;
        conditions.iter().find(|condition| condition.condition_type == condition_type)
    }

    /// Whether the condition of this type holds.
    pub fn is(&self, condition_type: ConditionType) -> bool {
        self.condition(condition_type).is_some_and(|condition| condition.status == Truth::True)
    }

    /// The fields of the controller.
    pub(crate) fn assignment(&self) -> ControllerStatus {
        self.status.as_ref().map(|status| status.controller.clone()).unwrap_or_default()
    }

    /// The fields of the node agent.
    pub(crate) fn observed(&self) -> NodeStatus {
        self.status.as_ref().map(|status| status.node.clone()).unwrap_or_default()
    }

    /// Whether the node agent has said of the pod that the attachment was given to that nothing is
    /// attached any more, after the attachment was deleted if it was.
    pub(crate) fn is_released(&self) -> bool {
        let (assignment, observed) = (self.assignment(), self.observed());
        let deleted_before = match self.metadata.deletion_timestamp {
            Some(_) => observed.observed_generation >= self.metadata.generation,
            None => true,
        };
        let detached = self.condition(ConditionType::Attached).is_some_and(|condition| {
            condition.status == Truth::False && condition.reason == DETACHED
        });
        detached && deleted_before && observed.observed_pod_uid == assignment.pod_uid
    }
}
