//! A [pod](https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/), as far
//! as something is decided by it. A cluster has tens of thousands, and the whole type of one takes
//! kilobytes of memory.

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use serde::Deserialize;

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Resource)]
#[resource(inherit = v1::Pod)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: ObjectMeta,
    pub(super) spec: Spec,
    pub(super) status: Status,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) node_name: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    volumes: Vec<Volume>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    restart_policy: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    persistent_volume_claim: Option<ClaimSource>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSource {
    claim_name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Status {
    phase: Option<String>,
    message: Option<String>,
    reason: Option<String>,
    conditions: Vec<Condition>,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    condition_type: String,
    status: String,
    message: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    #[serde(default)]
    state: ContainerState,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
struct ContainerState {
    running: Option<Running>,
    waiting: Option<Waiting>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Running {}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Waiting {
    message: Option<String>,
    reason: Option<String>,
}

impl Pod {
    /// Its phase.
    pub(super) fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap_or("Unknown")
    }

    /// Whether it has ended: its containers are not started again.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// The node that it is on.
    pub(super) fn node(&self) -> Option<&str> {
        self.spec.node_name.as_deref()
    }

    /// The names of its containers, without those that are for its start alone.
    pub(super) fn containers(&self) -> Vec<&str> {
        let starts = self.spec.init_containers.iter();
        // A sidecar is an init container that goes on.
        let sidecars = starts.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        let all = self.spec.containers.iter().chain(sidecars);
        all.map(|container| container.name.as_str()).collect()
    }

    /// The names of the claims that it has.
    pub(super) fn claims(&self) -> impl Iterator<Item = &str> {
        let claims =
            self.spec.volumes.iter().filter_map(|one| one.persistent_volume_claim.as_ref());
        claims.map(|claim| claim.claim_name.as_str())
    }

    /// The ID of its container of this name that runs.
    pub(super) fn running_container(&self, name: &str) -> Option<String> {
        let status = &self.status;
        let all = status.container_statuses.iter().chain(&status.init_container_statuses);
        let mut its = all.filter(|one| one.name == name);
        its.find(|one| one.state.running.is_some())?.container_id.clone()
    }

    /// What it waits for, as the scheduler or kubelet say it.
    pub(super) fn why_pending(&self) -> Option<String> {
        let status = &self.status;
        let is_unmet =
            |one: &&Condition| one.condition_type == "PodScheduled" && one.status == "False";
        let unscheduled = status.conditions.iter().find(is_unmet);
        let unscheduled = unscheduled.and_then(|condition| condition.message.clone());
        // kubelet's words about a pod that it does not run, or has evicted.
        let ended = status.message.clone().or_else(|| status.reason.clone());
        let waiting = status.container_statuses.iter().find_map(|container| {
            let waiting = container.state.waiting.as_ref()?;
            waiting.message.clone().or_else(|| waiting.reason.clone())
        });
        unscheduled.or(ended).or(waiting)
    }
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::{attachment_pod, controller::known, sample};

    /// A pod as an API server sends it.
    fn pod(status: &Value) -> Pod {
        let container = |name: &str, policy: Option<&str>| json!({ "name": name, "image": "i", "restartPolicy": policy, "env": [{ "name": "E" }] });
        sample::object(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "p", "namespace": "db", "uid": "pod-1", "labels": { "a": "b" },
                "annotations": { "c": "d" }, "managedFields": [{ "manager": "kubelet" }],
                "ownerReferences": [
                    { "apiVersion": "v", "kind": "k", "name": "n", "uid": "uid-1" },
                ],
            },
            "spec": {
                "nodeName": "node-1", "hostname": "h",
                "containers": [container("main", None)],
                "initContainers": [container("first", None), container("sidecar", Some("Always"))],
                "volumes": [
                    { "name": "v", "persistentVolumeClaim": { "claimName": "scratch" } },
                    { "name": "e", "emptyDir": {} },
                ],
            },
            "status": status,
        }))
    }

    fn container(name: &str, state: Value) -> Value {
        let id = format!("containerd://{name}");
        json!({ "name": name, "containerID": id, "ready": true, "state": state })
    }

    #[test]
    fn a_pod_says_what_decides_about_an_attachment() {
        let started = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
        let mut pod = pod(&json!({
            "phase": "Running", "podIP": "10.0.0.1",
            "containerStatuses": [container("main", started.clone()), container("x", json!({}))],
            "initContainerStatuses": [container("sidecar", started)],
        }));
        known::reduce(&mut pod);
        assert_eq!((pod.phase(), pod.has_ended(), pod.node()), ("Running", false, Some("node-1")));
        assert_eq!(pod.containers(), ["main", "sidecar"]);
        assert_eq!(pod.claims().collect::<Vec<_>>(), ["scratch"]);
        assert_eq!(pod.running_container("main").as_deref(), Some("containerd://main"));
        assert_eq!(pod.running_container("sidecar").as_deref(), Some("containerd://sidecar"));
        assert_eq!(pod.running_container("x"), None);
        assert_eq!(pod.why_pending(), None);
        assert!(attachment_pod::is_of(&pod, &sample::attachment()));
        assert_eq!((pod.uid().as_deref(), pod.labels().len()), (Some("pod-1"), 0));
    }

    #[test]
    fn the_scheduler_comes_before_kubelet_and_kubelet_before_a_container() {
        let scheduled = |status: &str| json!([{ "type": "PodScheduled", "status": status, "message": "no node" }]);
        let waits = json!({ "waiting": { "reason": "ErrImagePull", "message": "no image" } });
        let status = json!({
            "phase": "Pending", "conditions": scheduled("False"), "message": "a message",
            "reason": "AReason", "containerStatuses": [container("main", waits)],
        });
        let without = |names: &[&str]| {
            let mut status = status.clone();
            names.iter().for_each(|name| drop(status.as_object_mut().unwrap().remove(*name)));
            pod(&status).why_pending()
        };
        assert_eq!(without(&[]).as_deref(), Some("no node"));
        assert_eq!(without(&["conditions"]).as_deref(), Some("a message"));
        assert_eq!(without(&["conditions", "message"]).as_deref(), Some("AReason"));
        let container = without(&["conditions", "message", "reason"]);
        assert_eq!(container.as_deref(), Some("no image"));
        assert_eq!(pod(&json!({ "conditions": scheduled("True") })).why_pending(), None);
    }

    #[test]
    fn a_pod_without_a_status_is_one() {
        let pod: Pod = sample::object(json!({ "metadata": { "name": "p" }, "spec": {} }));
        assert_eq!((pod.phase(), pod.node(), pod.why_pending()), ("Unknown", None, None));
    }
}
