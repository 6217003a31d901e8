//! Why an attachment is not given to a node. Each message says what is wrong, and what to do.

use kube::ResourceExt as _;

use super::{observed::Observed, pod::Pod};
use crate::attachment_pod;

/// Why an attachment is not given to a node: a reason for programs, and for people.
pub(super) struct Refusal(pub(super) &'static str, pub(super) String);

/// The pod, if the attachment can be given to its node.
pub(super) fn acceptable(observed: &Observed) -> Result<&Pod, Refusal> {
    let spec = &observed.attachment.spec;
    let name = &spec.pod_name;
    if let Some(own) = observed.own_pod() {
        let message = format!(
            "attachment pod {} of an earlier pod is being removed; this goes on when it is gone",
            own.name_any()
        );
        return Err(Refusal("AttachmentPodTerminating", message));
    }
    let Some(pod) = &observed.pod else {
        let message = format!(
            "there is no pod {name} in this namespace; create it, or delete this attachment and \
             create one that names a pod (kubectl get pod)"
        );
        return Err(Refusal("PodNotFound", message));
    };
    if pod.metadata.deletion_timestamp.is_some() {
        let message =
            format!("pod {name} is being deleted; the next pod of this name gets the volume");
        return Err(Refusal("PodNotRunning", message));
    }
    let (Some(node), "Running") = (pod.node(), pod.phase()) else {
        let message = format!(
            "pod {name} does not run: its phase is {}; the volume is attached when it runs \
             (kubectl describe pod {name})",
            pod.phase()
        );
        return Err(Refusal("PodNotRunning", message));
    };
    if !pod.containers().contains(&spec.container_name.as_str()) {
        let message = format!(
            "pod {name} has no container {}, but {}; delete this attachment and create one that \
             names one of them",
            spec.container_name,
            pod.containers().join(", ")
        );
        return Err(Refusal("ContainerNotFound", message));
    }
    if let Some(rival) = observed.rival() {
        let message = format!(
            "attachment {rival} has {} in this container; delete it, or create this one with \
             another path",
            spec.path()
        );
        let reason = if spec.mount.is_some() { "MountPathTaken" } else { "DevicePathTaken" };
        return Err(Refusal(reason, message));
    }
    if observed.attachment_pod.is_some() {
        let message = format!(
            "pod {} has the name of the attachment pod and was not made for this attachment; \
             delete that pod",
            attachment_pod::name(&observed.attachment)
        );
        return Err(Refusal("AttachmentPodNameTaken", message));
    }
    claim_fits(observed, node)?;
    Ok(pod)
}

fn claim_fits(observed: &Observed, node: &str) -> Result<(), Refusal> {
    let Some(name) = observed.claim_name() else { return Ok(()) };
    let Some(claim) = &observed.claim else {
        let message = format!(
            "there is no claim {name} in this namespace; create it with volumeMode: Block (kubectl \
             get pvc)"
        );
        return Err(Refusal("ClaimNotFound", message));
    };
    if claim.spec.volume_mode.as_deref() != Some("Block") {
        let message = format!(
            "claim {name} is a file system (volumeMode: Filesystem), which the node would mount; \
             use a claim with volumeMode: Block, also where its file system is to be mounted in the \
             container (mount)"
        );
        return Err(Refusal("ClaimNotBlock", message));
    }
    if claim.status.phase.as_deref() == Some("Lost") {
        let message = format!(
            "claim {name} has lost its volume (phase Lost); restore its persistent volume, or use \
             another claim"
        );
        return Err(Refusal("ClaimLost", message));
    }
    let mut modes = claim.spec.access_modes.iter();
    if modes.any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany") {
        return Ok(());
    }
    let elsewhere = observed
        .claim_users
        .iter()
        .find(|user| !user.has_ended() && user.node().is_some_and(|other| other != node));
    match elsewhere {
        Some(user) => {
            let (pod, other) = (user.name_any(), user.node().unwrap_or_default());
            let message = format!(
                "claim {name} is in use by pod {pod} on node {other}, and its access modes allow \
                 one node alone; delete that pod, or use a claim with ReadWriteMany"
            );
            Err(Refusal("ClaimOnOtherNode", message))
        }
        None => Ok(()),
    }
}
