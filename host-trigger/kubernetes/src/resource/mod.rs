//! The resource `BlockVolumeAttachment`: what users ask for, and what they are told. The manifest
//! of its definition is generated from these types ([`definition`]).

mod byte_rate;
mod condition;
mod mount;
mod spec;
mod status;

pub use byte_rate::{ByteRate, InvalidByteRate};
pub(crate) use condition::bounded;
pub use condition::{Condition, ConditionType, Truth};
pub use mount::Mount;
pub use spec::{
    BlockVolumeAttachment, BlockVolumeAttachmentSpec, ClaimSource, HostPathSource, Limits, Source,
};
pub(crate) use status::DETACHED;
pub use status::{BlockVolumeAttachmentStatus, ControllerStatus, FileSystemStatus, NodeStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The group of the resource.
pub const GROUP: &str = "block-volume.ecr-runtime.dev";
/// The label with the name of the node. The controller sets it; a node agent watches the
/// attachments that have its own name there.
pub const NODE_LABEL: &str = "ecr-runtime.dev/node";
/// The annotation with the UID of the pod that the attachment was given to, on the node of the
/// label. The controller sets it with the label, and goes by both if a client has emptied the
/// status.
pub const POD_UID_ANNOTATION: &str = "block-volume.ecr-runtime.dev/pod-uid";
/// The controller's finalizer: a resource that is gone is a volume that is detached.
pub const FINALIZER: &str = "block-volume.ecr-runtime.dev/detach";
/// The annotation that asks for a detach although the volume is in use. Its value is the reason.
pub const FORCE_ANNOTATION: &str = "block-volume.ecr-runtime.dev/force-detach";

/// The definition of the resource.
pub fn definition() -> CustomResourceDefinition {
    BlockVolumeAttachment::crd()
}
