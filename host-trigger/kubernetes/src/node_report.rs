//! What a node agent says of an attachment, in the fields of the status that are its own.

use kube::Client;
use serde_json::Value;

use crate::{
    apply::apply_status,
    error::Error,
    resource::{BlockVolumeAttachment, Condition, ConditionType, DETACHED, NodeStatus, Truth},
};

/// The name under which node agents own their fields.
const MANAGER: &str = "block-volume-node";

/// The node agent's part of the status.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NodeReport {
    status: NodeStatus,
    condition: Condition,
}

impl NodeReport {
    /// A report about `attachment` as it is known here.
    pub(crate) fn new(
        attachment: &BlockVolumeAttachment,
        status: NodeStatus,
        condition: Condition,
    ) -> Self {
        let former = attachment.condition(condition.condition_type);
        let status = NodeStatus {
            observed_pod_uid: attachment.assignment().pod_uid,
            observed_generation: attachment.metadata.generation,
            ..status
        };
        Self { status, condition: condition.since(former, attachment.metadata.generation) }
    }

    /// Nothing is attached any more.
    pub(crate) fn detached(attachment: &BlockVolumeAttachment, message: &str) -> Self {
        let condition = Condition::new(ConditionType::Attached, Truth::False, DETACHED, message);
        Self::new(attachment, NodeStatus::default(), condition)
    }

    /// Nothing is attached any more because there is no such node.
    pub(crate) fn gone(attachment: &BlockVolumeAttachment) -> Self {
        let node = attachment.assignment().node_name.unwrap_or_default();
        Self::detached(attachment, &format!("node {node} is not a part of the cluster any more"))
    }

    /// Whether the attachment's status says so already.
    pub(crate) fn is_known(&self, attachment: &BlockVolumeAttachment) -> bool {
        attachment.observed() == self.status
            && attachment.condition(self.condition.condition_type) == Some(&self.condition)
    }

    /// Whether the status says something else about whether the volume is attached, and why.
    pub(crate) fn is_news(&self, attachment: &BlockVolumeAttachment) -> bool {
        let former = attachment.condition(self.condition.condition_type);
        former.map(|one| (one.status, one.reason.as_str()))
            != Some((self.condition.status, self.condition.reason.as_str()))
    }

    /// Its condition.
    pub(crate) fn condition(&self) -> &Condition {
        &self.condition
    }

    /// Writes it, unless it is known.
    ///
    /// # Errors
    /// The API server does not accept it.
    pub(crate) async fn apply(
        &self,
        client: &Client,
        attachment: &BlockVolumeAttachment,
    ) -> Result<(), Error> {
        if self.is_known(attachment) {
            return Ok(());
        }
        let mut body = serde_json::to_value(&self.status)?;
        body["conditions"] = Value::Array(vec![serde_json::to_value(&self.condition)?]);
        apply_status(client, attachment, MANAGER, &body).await
    }
}
