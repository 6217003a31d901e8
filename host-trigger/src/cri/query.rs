//! Questions about one pod of this node, for a program that names pods on behalf of others.

use super::{
    endpoint::Endpoint,
    engine::{ContainerState, Engine, PodSandbox},
    lookup,
};
use crate::{Deadline, Error, pod::PodName};

/// The containers of one name in a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedContainers {
    /// The ID of the one that runs.
    pub running: Option<String>,
    /// The IDs of all that the engine knows, those that ended included.
    pub all: Vec<String>,
}

impl Endpoint {
    /// The sandbox of the pod with this name and this UID that is ready.
    ///
    /// # Errors
    /// The pod is not on this node, its sandbox is not ready, or the engine does not tell.
    pub async fn sandbox(
        &self,
        pod: &PodName,
        uid: Option<&str>,
        deadline: Deadline,
    ) -> Result<PodSandbox, Error> {
        let mut engine = Engine::connect(self, deadline).await?;
        let mut all = engine.sandboxes(deadline).await?;
        all.retain(|one| uid.is_none_or(|uid| one.uid == uid));
        lookup::sandbox(pod, &all)
    }

    /// The containers called `name` in `sandbox`.
    ///
    /// # Errors
    /// The engine does not tell.
    pub async fn containers(
        &self,
        sandbox: &PodSandbox,
        name: &str,
        deadline: Deadline,
    ) -> Result<NamedContainers, Error> {
        let mut engine = Engine::connect(self, deadline).await?;
        let mut its = engine.containers(&sandbox.id, deadline).await?;
        its.retain(|one| one.name == name);
        let running = its.iter().filter(|one| one.state == ContainerState::Running);
        let running = running.max_by_key(|one| one.attempt).map(|one| one.id.clone());
        Ok(NamedContainers { running, all: its.into_iter().map(|one| one.id).collect() })
    }
}
