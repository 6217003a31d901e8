//! What the watches have brought: the pods and claims of the cluster, of each what decides about
//! attachments. It may be older than what the API server has, so that nothing is written by it; but
//! where it asks for nothing, the API server is not asked. A change that comes later is looked at
//! when it comes.

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerStatus, PersistentVolumeClaim, Pod, PodSpec, PodStatus, Volume,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::sync::OnceCell;

use super::observed::{self, Observed};
use crate::{attachment_pod, resource::BlockVolumeAttachment};

/// The pods and claims that are known.
pub(super) struct Known {
    pods: Store<Pod>,
    claims: Store<PersistentVolumeClaim>,
    is_complete: OnceCell<bool>,
}

impl Known {
    /// What these stores have.
    pub(super) fn new(pods: Store<Pod>, claims: Store<PersistentVolumeClaim>) -> Self {
        Self { pods, claims, is_complete: OnceCell::new() }
    }

    /// Waits until the first lists are complete; false if the watches have ended before.
    pub(super) async fn is_complete(&self) -> bool {
        // Of several tasks that wait for a store, kube 5.0 wakes the last one alone.
        let complete = async || {
            self.pods.wait_until_ready().await.is_ok()
                && self.claims.wait_until_ready().await.is_ok()
        };
        *self.is_complete.get_or_init(complete).await
    }

    /// What is known of an attachment that was given to a pod which is still there, and stays so;
    /// `None` if more has to be known to decide about it.
    pub(super) fn observe(&self, attachment: &BlockVolumeAttachment) -> Option<Observed> {
        let namespace = attachment.namespace().unwrap_or_default();
        let pod = |name: &str| {
            let pod = self.pods.get(&ObjectRef::new(name).within(&namespace));
            pod.map(|pod| (*pod).clone())
        };
        let mut observed = Observed {
            is_restored: false,
            pod: pod(&attachment.spec.pod_name),
            claim: None,
            attachment_pod: pod(&attachment_pod::name(attachment)),
            node_exists: true,
            same_place: Vec::new(),
            claim_users: Vec::new(),
            attachment: attachment.clone(),
        };
        if let Some(claim) = observed.claim_name() {
            let claim = self.claims.get(&ObjectRef::new(claim).within(&namespace));
            observed.claim = claim.map(|claim| (*claim).clone());
        }
        let is_leaving = attachment.metadata.deletion_timestamp.is_some();
        (!is_leaving && observed.assigned_pod().is_some()).then_some(observed)
    }
}

/// Leaves of a pod what decides about attachments: a cluster has tens of thousands of pods.
pub(super) fn reduce(pod: &mut Pod) {
    let ObjectMeta { name, namespace, uid, owner_references, deletion_timestamp, .. } =
        std::mem::take(&mut pod.metadata);
    pod.metadata = ObjectMeta {
        name,
        namespace,
        uid,
        owner_references,
        deletion_timestamp,
        ..ObjectMeta::default()
    };
    pod.spec = pod.spec.take().map(|spec| PodSpec {
        node_name: spec.node_name,
        containers: spec.containers.into_iter().map(reduced_container).collect(),
        init_containers: spec
            .init_containers
            .map(|all| all.into_iter().map(reduced_container).collect()),
        volumes: spec.volumes.map(|all| all.into_iter().filter_map(reduced_volume).collect()),
        ..PodSpec::default()
    });
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        message: status.message,
        reason: status.reason,
        conditions: status.conditions.map(|mut all| {
            all.retain(|one| one.type_ == observed::SCHEDULED);
            all
        }),
        container_statuses: status
            .container_statuses
            .map(|all| all.into_iter().map(reduced_status).collect()),
        init_container_statuses: status
            .init_container_statuses
            .map(|all| all.into_iter().map(reduced_status).collect()),
        ..PodStatus::default()
    });
}

fn reduced_container(container: Container) -> Container {
    Container {
        name: container.name,
        restart_policy: container.restart_policy,
        ..Container::default()
    }
}

fn reduced_volume(volume: Volume) -> Option<Volume> {
    volume.persistent_volume_claim.is_some().then(|| Volume {
        name: volume.name,
        persistent_volume_claim: volume.persistent_volume_claim,
        ..Volume::default()
    })
}

fn reduced_status(status: ContainerStatus) -> ContainerStatus {
    ContainerStatus {
        name: status.name,
        container_id: status.container_id,
        state: status.state,
        ..ContainerStatus::default()
    }
}

/// Leaves out of an object who has written which of its fields.
pub(super) fn without_managers(object: &mut impl kube::Resource) {
    object.meta_mut().managed_fields = None;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::runtime::{reflector, watcher::Event};
    use serde_json::json;

    use super::*;
    use crate::{controller::claim_users, resource::ControllerStatus, sample};

    /// What is known if there is the pod of the sample.
    fn known() -> Known {
        let ((pods, mut writer), (claims, mut claim_writer)) =
            (reflector::store(), reflector::store());
        writer.apply_watcher_event(&Event::Apply(sample::pod()));
        claim_writer.apply_watcher_event(&Event::Apply(sample::claim()));
        Known::new(pods, claims)
    }

    /// An attachment that was given to the pod of this UID.
    fn given_to(pod_uid: &str) -> BlockVolumeAttachment {
        let mut attachment = sample::attachment();
        let controller =
            ControllerStatus { pod_uid: Some(pod_uid.to_owned()), ..ControllerStatus::default() };
        attachment.status.get_or_insert_default().controller = controller;
        attachment
    }

    #[test]
    fn enough_is_known_only_of_what_was_given_to_a_pod_that_is_there() {
        let (known, given) = (known(), given_to("pod-1"));
        let observed = known.observe(&given).unwrap();
        assert_eq!(observed.pod, Some(sample::pod()));
        assert_eq!(observed.claim, Some(sample::claim()));
        assert_eq!(observed.attachment_pod, None);
        assert!(known.observe(&sample::attachment()).is_none());
        assert!(known.observe(&given_to("pod-2")).is_none());
        let mut leaving = given;
        leaving.metadata.deletion_timestamp = sample::object(json!("2026-01-01T00:00:00Z"));
        assert!(known.observe(&leaving).is_none());
    }

    #[tokio::test]
    async fn all_wait_until_the_first_lists_are_complete() {
        let ((pods, mut writer), (claims, mut claim_writer)) =
            (reflector::store(), reflector::store());
        let known = Arc::new(Known::new(pods, claims));
        let waits = |_| {
            let known = known.clone();
            tokio::spawn(async move { known.is_complete().await })
        };
        let waiting: Vec<_> = (0..3).map(waits).collect();
        tokio::task::yield_now().await;
        writer.apply_watcher_event(&Event::InitDone);
        tokio::task::yield_now().await;
        assert!(waiting.iter().all(|one| !one.is_finished()));
        claim_writer.apply_watcher_event(&Event::InitDone);
        for one in waiting {
            assert!(one.await.unwrap());
        }
    }

    #[tokio::test]
    async fn a_controller_that_ends_waits_for_no_list() {
        let ((pods, _), (claims, _)) = (reflector::store(), reflector::store());
        assert!(!Known::new(pods, claims).is_complete().await);
    }

    /// A pod in which everything is set that decides, and more.
    fn pod() -> Pod {
        let container = |name: &str| {
            json!({
                "name": name, "image": "i", "command": ["c"], "restartPolicy": "Always",
                "env": [{ "name": "E", "value": "v" }],
            })
        };
        let status = |name: &str| {
            json!({
                "name": name, "containerID": format!("containerd://{name}"), "ready": true,
                "image": "i", "imageID": "i", "restartCount": 3, "state": { "running": {} },
            })
        };
        let waits = json!({
            "name": "waits", "ready": false, "image": "i", "imageID": "i", "restartCount": 0,
            "state": { "waiting": { "reason": "ErrImagePull", "message": "no image" } },
        });
        sample::object(json!({
            "metadata": {
                "name": "p", "namespace": "db", "uid": "pod-1", "labels": { "a": "b" },
                "annotations": { "c": "d" }, "deletionTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [
                    { "apiVersion": "v", "kind": "k", "name": "n", "uid": "uid-1" },
                ],
                "managedFields": [{ "manager": "kubelet" }],
            },
            "spec": {
                "nodeName": "node-1", "hostname": "h",
                "containers": [container("main")],
                "initContainers": [container("sidecar")],
                "volumes": [
                    { "name": "v", "persistentVolumeClaim": { "claimName": "scratch" } },
                    { "name": "e", "emptyDir": {} },
                ],
            },
            "status": {
                "phase": "Running", "message": "a message", "reason": "AReason",
                "podIP": "10.0.0.1",
                "conditions": [
                    { "type": "PodScheduled", "status": "False", "message": "no node" },
                    { "type": "Ready", "status": "True" },
                ],
                "containerStatuses": [status("main"), waits],
                "initContainerStatuses": [status("sidecar")],
            },
        }))
    }

    #[test]
    fn what_is_left_of_a_pod_says_the_same_about_an_attachment() {
        let mut without_condition = pod();
        without_condition.status.as_mut().unwrap().conditions = None;
        let mut without_message = without_condition.clone();
        without_message.status.as_mut().unwrap().message = None;
        let mut without_reason = without_message.clone();
        without_reason.status.as_mut().unwrap().reason = None;
        let mut whys = Vec::new();
        for full in [pod(), without_condition, without_message, without_reason] {
            let mut reduced = full.clone();
            reduce(&mut reduced);
            let said = |pod: &Pod| {
                (
                    (pod.name_any(), pod.namespace(), pod.uid()),
                    pod.metadata.deletion_timestamp.clone(),
                    attachment_pod::is_of(pod, &sample::attachment()),
                    (observed::phase(pod).to_owned(), observed::has_ended(pod)),
                    observed::node(pod).map(str::to_owned),
                    observed::containers(pod).join(","),
                    ["main", "sidecar", "waits"].map(|name| observed::running_container(pod, name)),
                    observed::why_pending(pod),
                    claim_users::claims(pod).map(str::to_owned).collect::<Vec<_>>(),
                )
            };
            assert_eq!(said(&reduced), said(&full));
            whys.push(observed::why_pending(&reduced).unwrap());
        }
        assert_eq!(whys, ["no node", "a message", "AReason", "no image"]);
    }

    #[test]
    fn what_is_left_of_a_pod_is_small() {
        let size = |pod: &Pod| serde_json::to_string(pod).unwrap();
        let mut reduced = pod();
        reduce(&mut reduced);
        for word in ["\"E\"", "command", "annotations", "managedFields", "podIP", "Ready", "empty"]
        {
            assert!(size(&pod()).contains(word) && !size(&reduced).contains(word), "{word}");
        }
    }
}
