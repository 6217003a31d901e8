//! The attachment pod. Kubernetes brings a claim to a node only for a pod: this one has the claim
//! of an attachment among its volume devices, does nothing, and stays for as long as the volume is
//! attached. Its rights are those of the restricted
//! [pod security standard](https://kubernetes.io/docs/concepts/security/pod-security-standards/).

use k8s_openapi::{
    api::core::v1::Pod,
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    serde_json::{Value, json},
};
use kube::{Resource as _, ResourceExt as _};
use sha2::{Digest as _, Sha256};

use crate::resource::BlockVolumeAttachment;

/// The label of attachment pods, so that the controller watches them alone.
pub const LABEL: &str = "app.kubernetes.io/component";
/// Its value.
pub const LABEL_VALUE: &str = "attachment-pod";
/// Where its container has the device. Nothing opens it there.
const DEVICE_PATH: &str = "/dev/block-volume";
/// The longest prefix of its name that is the attachment's name: a pod's name may be longer, but
/// its host name may not.
const MAX_PREFIX: usize = 40;

/// The name of the pod of an attachment. It depends on its UID: the pod of an earlier attachment
/// of the same name has another name.
pub fn name(attachment: &BlockVolumeAttachment) -> String {
    let uid = attachment.uid().unwrap_or_default();
    let digest = Sha256::digest(uid.as_bytes());
    let suffix: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let mut prefix = attachment.name_any().replace('.', "-");
    prefix.truncate(MAX_PREFIX);
    format!("{}-bva-{suffix}", prefix.trim_end_matches('-'))
}

/// Whether it is the pod of this attachment, and not another one of its name.
pub fn is_of(pod: &impl kube::Resource, attachment: &BlockVolumeAttachment) -> bool {
    let uid = attachment.uid();
    uid.is_some() && pod.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref())
}

/// The pod to be made, on `node`, with `claim` as its volume.
///
/// # Errors
/// It does not deserialize, which would be a bug.
pub fn new(
    attachment: &BlockVolumeAttachment,
    claim: &str,
    node: &str,
    image: &str,
) -> Result<Pod, serde_json::Error> {
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name(attachment),
            "namespace": attachment.namespace(),
            "labels": {
                LABEL: LABEL_VALUE,
                "app.kubernetes.io/name": "block-volume-kubernetes",
            },
            "ownerReferences": [owner(attachment)],
        },
        "spec": {
            // By affinity: a pod that names its node passes the scheduler by, which has the volume
            // of a claim made that waits for its first consumer.
            "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{
                    "matchFields": [
                        { "key": "metadata.name", "operator": "In", "values": [node] },
                    ],
                }]},
            }},
            // The pod that gets the volume runs there, so this one may, too.
            "tolerations": [{ "operator": "Exists" }],
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65534,
                "runAsGroup": 65534,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "hold",
                "image": image,
                "args": ["hold"],
                "volumeDevices": [{ "name": "volume", "devicePath": DEVICE_PATH }],
                "resources": {
                    "requests": { "cpu": "1m", "memory": "8Mi" },
                    "limits": { "memory": "32Mi" },
                },
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                },
            }],
            "volumes": [volume(claim, attachment.spec.read_only)],
        },
    }))
}

fn volume(claim: &str, read_only: bool) -> Value {
    json!({
        "name": "volume",
        "persistentVolumeClaim": { "claimName": claim, "readOnly": read_only },
    })
}

fn owner(attachment: &BlockVolumeAttachment) -> Option<OwnerReference> {
    attachment.controller_owner_ref(&())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::attachment;

    #[test]
    fn the_name_fits_a_host_name_and_is_that_of_one_attachment() {
        let mut first = attachment();
        first.metadata.name = Some(format!("a.{}-.b", "x".repeat(100)));
        let first_name = name(&first);
        assert!(first_name.len() <= 63 && !first_name.contains('.'), "{first_name}");
        let mut second = first.clone();
        second.metadata.uid = Some("other".to_owned());
        assert_ne!(name(&second), first_name);
    }

    #[test]
    fn the_pod_is_restricted_and_owned() {
        let attachment = attachment();
        let pod = new(&attachment, "scratch", "node-1", "image").unwrap();
        assert!(is_of(&pod, &attachment));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false));
        let container = &spec.containers[0];
        let context = container.security_context.as_ref().unwrap();
        assert_eq!(context.allow_privilege_escalation, Some(false));
        let dropped = context.capabilities.as_ref().unwrap().drop.as_ref().unwrap();
        assert_eq!(dropped, &["ALL"]);
    }

    #[test]
    fn a_pod_of_another_attachment_is_not_its_own() {
        let mut other = attachment();
        other.metadata.uid = Some("other".to_owned());
        let pod = new(&other, "scratch", "node-1", "image").unwrap();
        assert!(!is_of(&pod, &attachment()));
    }
}
