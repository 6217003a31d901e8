//! The PodMonitor of the manifests is one that the Prometheus operator accepts, and selects the
//! pods of the manifests.
//!
//! The operator's definition is no part of Kubernetes, and the library that has its types has
//! 77,000 lines of them and another version of kube. So the fields that are used are written down
//! here once more, from its
//! [API reference](https://prometheus-operator.dev/docs/api-reference/api/): another one is an
//! error.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: PodMonitorSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitorSpec {
    selector: LabelSelector,
    pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LabelSelector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Requirement>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
enum Operator {
    In,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMetricsEndpoint {
    port: String,
    path: String,
    honor_labels: bool,
}

fn manifest(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(name)).unwrap()
}

fn documents<T: DeserializeOwned>(name: &str) -> Vec<T> {
    serde_saphyr::from_multiple(&manifest(name)).unwrap()
}

/// The pod templates of the controller and of the node agents.
fn templates() -> Vec<Value> {
    let all = ["base/controller.yaml", "base/node.yaml"].map(documents::<Value>).concat();
    let templates = all.into_iter().map(|one| one["spec"]["template"].clone());
    templates.filter(|template| !template.is_null()).collect()
}

#[test]
fn the_pod_monitor_has_the_fields_of_its_definition() {
    let [monitor] = &documents::<PodMonitor>("pod-monitor/pod-monitor.yaml")[..] else {
        panic!("one monitor is expected")
    };
    assert_eq!(monitor.api_version, "monitoring.coreos.com/v1");
    assert_eq!(
        (monitor.kind.as_str(), monitor.metadata.name.as_str()),
        ("PodMonitor", "block-volume")
    );
}

#[test]
fn the_pod_monitor_selects_the_pods_of_the_manifests_and_a_port_that_they_have() {
    let monitor = documents::<PodMonitor>("pod-monitor/pod-monitor.yaml").remove(0);
    let LabelSelector { match_labels, match_expressions } = monitor.spec.selector;
    let templates = templates();
    assert_eq!(templates.len(), 2);
    for template in templates {
        let labels = &template["metadata"]["labels"];
        for (label, value) in &match_labels {
            assert_eq!(labels[label], *value, "{labels}");
        }
        for Requirement { key, operator, values } in &match_expressions {
            assert_eq!(*operator, Operator::In);
            assert!(values.iter().any(|value| labels[key] == *value), "{labels}");
        }
        for PodMetricsEndpoint { port, path, honor_labels } in &monitor.spec.pod_metrics_endpoints {
            let ports = template["spec"]["containers"][0]["ports"].as_array().unwrap();
            assert!(ports.iter().any(|one| one["name"] == *port), "{ports:?}");
            assert_eq!(path, "/metrics");
            // A volume's own namespace is not to be hidden by that of the agent.
            assert!(honor_labels);
        }
    }
}
