//! What a container engine notes in a bundle of the pod that the container is of: the annotations
//! of
//! [containerd](https://github.com/containerd/containerd/blob/main/internal/cri/annotations/annotations.go)
//! and of [CRI-O](https://github.com/cri-o/cri-o/blob/main/internal/annotations/annotations.go).

use std::collections::HashMap;

use serde::Deserialize;

use crate::pod::{PodName, is_name};

/// The annotations with the sandbox's ID: containerd's and CRI-O's.
const SANDBOX_IDS: [&str; 2] = ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID"];
/// CRI-O's copy of the CRI's metadata of the container or sandbox, as JSON.
const METADATA: &str = "io.kubernetes.cri-o.Metadata";

/// The annotations of a bundle.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Annotations(HashMap<String, String>);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    /// A sandbox's alone.
    namespace: String,
}

impl Annotations {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The sandbox's ID; none of a container that no CRI started.
    pub(super) fn sandbox(&self) -> Option<&str> {
        SANDBOX_IDS.iter().find_map(|name| self.get(name))
    }

    /// The pod.
    pub(super) fn pod(&self) -> Option<PodName> {
        let named = |namespace: &str, name: &str| {
            let is_pod = is_name(namespace) && is_name(name);
            is_pod.then(|| PodName { namespace: namespace.to_owned(), name: name.to_owned() })
        };
        let namespace = self.get("io.kubernetes.cri.sandbox-namespace");
        match (namespace, self.get("io.kubernetes.cri.sandbox-name")) {
            (Some(namespace), Some(name)) => named(namespace, name),
            _ => self.metadata().and_then(|metadata| named(&metadata.namespace, &metadata.name)),
        }
    }

    /// The container's name in the pod; none of a sandbox.
    pub(super) fn container(&self) -> Option<String> {
        let name = match self.get("io.kubernetes.cri.container-name") {
            Some(name) => name.to_owned(),
            None => self.metadata().filter(|metadata| metadata.namespace.is_empty())?.name,
        };
        is_name(&name).then_some(name)
    }

    fn metadata(&self) -> Option<Metadata> {
        serde_json::from_str(self.get(METADATA)?).ok()
    }
}
