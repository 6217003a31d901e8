//! A pod, its container, and commands in that.

use serde_json::Value;

use super::program::{ecr_runtime, ecr_runtime_succeeds};
use crate::{Container, Engine, Finished, Pod, PodContainer, Sandbox};

/// The namespace of all pods.
pub(super) const NAMESPACE: &str = "shop";
/// The name of each pod's container.
pub(super) const CONTAINER: &str = "app";

/// A running container of a pod.
pub(super) struct Workload {
    pub(super) pod: Pod,
    pub(super) container: PodContainer,
    /// `NAMESPACE/NAME`.
    pub(super) name: String,
    pub(super) inside: Inside,
}

/// What the container really is.
pub(super) enum Inside {
    /// The container of the same ID in a sandbox of the harness; that of the pod only sleeps.
    Harness(Box<(Sandbox, Container)>),
    /// The pod's.
    Kata,
}

impl Workload {
    /// Runs a command of busybox in the container, and returns what it printed.
    ///
    /// # Panics
    /// It cannot be run, or fails.
    pub(super) async fn busybox(&self, words: &[&str]) -> String {
        let command = [&["/bin/busybox"], words].concat();
        let (status, stdout, stderr) = match &self.inside {
            Inside::Harness(inside) => {
                let ran = inside.1.try_exec(&command, b"").await;
                let ran = ran.unwrap_or_else(|error| panic!("{command:?}: {}", error.chain()));
                (ran.status, ran.text(), ran.error_text())
            }
            Inside::Kata => {
                let ran = self.container.exec(&command).await;
                ran.unwrap_or_else(|error| panic!("{command:?}: {}", error.chain()))
            }
        };
        assert_eq!(status, 0, "{command:?} in the container: {stdout}{stderr}");
        stdout
    }

    /// Runs `ecr-runtime block-volume VERB` with the names of pod and container.
    pub(super) async fn volume(&self, verb: &str, words: &[&str]) -> Value {
        let command = ["block-volume", verb, "--pod", &self.name, "--container", CONTAINER];
        ecr_runtime_succeeds(&[&command, words].concat()).await
    }

    /// Lists the volumes of the pod's sandbox, by its ID.
    pub(super) async fn list(&self) -> Finished {
        ecr_runtime(&["block-volume", "list", "--sandbox", self.pod.id()]).await
    }

    /// Uses another connection, since the engine was restarted.
    pub(super) fn reconnect(&mut self, engine: &Engine) {
        self.pod = engine.adopt_pod(&self.pod);
        self.container = engine.adopt_container(&self.container);
    }

    /// Stops the pod, and removes it from the engine's list.
    pub(super) async fn stop(self) {
        let removed = self.pod.remove().await;
        removed.unwrap_or_else(|error| panic!("the pod is not removed: {}", error.chain()));
        // The shim of a pod of the harness: it ends QEMU.
        drop(self.inside);
    }
}
