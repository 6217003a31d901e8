//! What the controller has read about an attachment when it decides.

use kube::ResourceExt as _;

use super::{claim::Claim, pod::Pod};
use crate::{
    attachment_pod,
    resource::{
        BlockVolumeAttachment, ControllerStatus, FINALIZER, NODE_LABEL, POD_UID_ANNOTATION, Source,
    },
};

/// An attachment and what belongs to it.
#[derive(Debug, Clone)]
pub(super) struct Observed {
    pub(super) attachment: BlockVolumeAttachment,
    /// Whether the attachment's status has lost to whom it was given, and has it here by its
    /// record.
    pub(super) is_restored: bool,
    /// The pod that is named.
    pub(super) pod: Option<Pod>,
    /// The claim, if the source is one and it exists.
    pub(super) claim: Option<Claim>,
    /// The pod of the name that the attachment pod has.
    pub(super) attachment_pod: Option<Pod>,
    /// Whether the node exists that the attachment was given to.
    pub(super) node_exists: bool,
    /// The other attachments for the same path in the same container.
    pub(super) same_place: Vec<BlockVolumeAttachment>,
    /// The pods of the namespace that have the claim, the attachment pod excluded.
    pub(super) claim_users: Vec<Pod>,
}

impl Observed {
    /// The name of the claim, if the source is one.
    pub(super) fn claim_name(&self) -> Option<&str> {
        match &self.attachment.spec.source {
            Source::PersistentVolumeClaim(claim) => Some(&claim.claim_name),
            Source::HostPath(_) => None,
        }
    }

    /// The attachment pod, if it is that of this attachment.
    pub(super) fn own_pod(&self) -> Option<&Pod> {
        self.attachment_pod.as_ref().filter(|pod| attachment_pod::is_of(*pod, &self.attachment))
    }

    /// The pod that the attachment was given to, if it is still there and has not ended.
    pub(super) fn assigned_pod(&self) -> Option<&Pod> {
        let assigned = self.attachment.assignment().pod_uid;
        self.pod
            .as_ref()
            .filter(|pod| assigned.is_some() && pod.metadata.uid == assigned && !pod.has_ended())
    }

    /// Gives the attachment to whom it was given by its record, if its status has lost that. A user
    /// may create an attachment with a record, but not its attachment pod: one with a claim is
    /// believed with that pod alone. None is believed whose pod is on another node.
    pub(super) fn restore(&mut self) {
        let Some(record) = record(&self.attachment) else { return };
        let pod = self.pod.as_ref().filter(|pod| pod.metadata.uid == record.pod_uid);
        let is_elsewhere = pod.is_some_and(|pod| pod.node() != record.node_name.as_deref());
        let lacks_pod = self.claim_name().is_some() && self.own_pod().is_none();
        if is_given(&self.attachment) || is_elsewhere || lacks_pod {
            return;
        }
        self.is_restored = true;
        self.attachment.status.get_or_insert_default().controller = record;
    }

    /// Another attachment that was given and has the same path in the same container.
    pub(super) fn rival(&self) -> Option<String> {
        let mut others = self.same_place.iter();
        let given = others.find(|other| is_given(other) || record(other).is_some());
        given.map(BlockVolumeAttachment::name_any)
    }
}

/// Whether an attachment was given, as its status has it.
pub(super) fn is_given(attachment: &BlockVolumeAttachment) -> bool {
    attachment.assignment().pod_uid.is_some()
}

/// The node and the pod that an attachment was given to, as its metadata has them: they are written
/// before its status, and removed when it is given to no pod any more.
pub(super) fn record(attachment: &BlockVolumeAttachment) -> Option<ControllerStatus> {
    attachment.finalizers().iter().find(|one| *one == FINALIZER)?;
    Some(ControllerStatus {
        node_name: Some(attachment.labels().get(NODE_LABEL)?.clone()),
        pod_uid: Some(attachment.annotations().get(POD_UID_ANNOTATION)?.clone()),
        ..ControllerStatus::default()
    })
}

/// Whether another attachment is for the same place as `own`.
pub(super) fn is_rival(other: &BlockVolumeAttachment, own: &BlockVolumeAttachment) -> bool {
    place(other) == place(own) && other.metadata.uid != own.metadata.uid
}

/// Where the volume of an attachment is to be.
pub(super) fn place(attachment: &BlockVolumeAttachment) -> [String; 4] {
    let (namespace, spec) = (attachment.namespace().unwrap_or_default(), &attachment.spec);
    [namespace, spec.pod_name.clone(), spec.container_name.clone(), spec.path().to_owned()]
}
