//! What is asked for. The rules of the schema refuse what can never work. Those in CEL are an
//! addition: an API server before Kubernetes 1.25 leaves them out.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{byte_rate::ByteRate, mount::Mount, status::BlockVolumeAttachmentStatus};

/// A block volume in a container of a running pod.
///
/// The volume is attached for as long as this resource exists. A container that is restarted gets
/// it again, and so does a new pod of this name.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "block-volume.ecr-runtime.dev",
    version = "v1alpha1",
    kind = "BlockVolumeAttachment",
    plural = "blockvolumeattachments",
    shortname = "bva",
    doc = "A block volume in a container of a running pod of Kata's.",
    namespaced,
    derive = "PartialEq",
    status = "BlockVolumeAttachmentStatus",
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".spec.podName"}"#,
    printcolumn = r#"{"name":"Device","type":"string","jsonPath":".spec.devicePath"}"#,
    printcolumn = r#"{"name":"Mount","type":"string","jsonPath":".spec.mount.path"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".status.nodeName"}"#,
    printcolumn = r#"{"name":"Attached","type":"string",
        "jsonPath":".status.conditions[?(@.type=='Attached')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string",
        "jsonPath":".status.conditions[?(@.type=='Attached')].reason"}"#,
    printcolumn = r#"{"name":"Size","type":"integer","jsonPath":".status.size","priority":1}"#,
    printcolumn = r#"{"name":"File System","type":"string",
        "jsonPath":".status.fileSystem.type","priority":1}"#,
    printcolumn = r#"{"name":"Capacity","type":"integer",
        "jsonPath":".status.fileSystem.size","priority":1}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend(
    "x-kubernetes-validations" = [{
        "rule": "self.podName == oldSelf.podName && self.containerName == oldSelf.containerName \
                 && self.source == oldSelf.source && self.readOnly == oldSelf.readOnly \
                 && has(self.devicePath) == has(oldSelf.devicePath) \
                 && (!has(self.devicePath) || self.devicePath == oldSelf.devicePath) \
                 && has(self.mount) == has(oldSelf.mount) \
                 && (!has(self.mount) || self.mount == oldSelf.mount)",
        "message": "only the limits can be changed: delete the attachment and create another one",
    }],
    "oneOf" = [{ "required": ["devicePath"] }, { "required": ["mount"] }],
))]
pub struct BlockVolumeAttachmentSpec {
    /// The pod, in the namespace of this resource. Its runtime class is one of Kata's.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub pod_name: String,
    /// The container in the pod.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub container_name: String,
    /// The volume.
    pub source: Source,
    /// The path of the device in the container. Nothing may exist there yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "String",
        length(min = 2, max = 1024),
        regex(pattern = r"^(/([^/.]|\.[^/.]|\.\.[^/])[^/]*)+$")
    )]
    pub device_path: Option<String>,
    /// In place of a device: where and how the file system of the volume is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Mount")]
    pub mount: Option<Mount>,
    /// The container can only read.
    #[serde(default)]
    pub read_only: bool,
    /// What the container can do per second; unlimited by default. They can be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

impl BlockVolumeAttachmentSpec {
    /// The path in the container, of the device or of the mount; empty if there is neither, which
    /// the schema refuses.
    pub fn path(&self) -> &str {
        let mount = self.mount.as_ref().map(|mount| mount.path.as_str());
        mount.or(self.device_path.as_deref()).unwrap_or_default()
    }
}

/// Where the volume is. Exactly one of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// A claim in the namespace of this resource.
    PersistentVolumeClaim(ClaimSource),
    /// A block device or a raw image of the node, where its node agent allows that.
    HostPath(HostPathSource),
}

/// A claim of a block volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSource {
    /// The name of the claim. Its volume mode is Block.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub claim_name: String,
}

/// A path of the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HostPathSource {
    /// The absolute path of a block device or a raw image.
    #[schemars(
        length(min = 2, max = 4095),
        regex(pattern = r"^(/([^/.]|\.[^/.]|\.\.[^/])[^/]*)+$")
    )]
    pub path: String,
}

/// The most that the container can do per second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Operations per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_i64))]
    pub iops: Option<i64>,
    /// Bytes per second, such as 20Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<ByteRate>,
}
