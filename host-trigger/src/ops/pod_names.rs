//! The names of pods by the IDs of containers and sandboxes: from what the container engine told
//! already, or from the bundles, which need no engine.

use std::collections::HashMap;

use block_volume_qmp::Trust;

use super::pod::FoundPod;
use crate::{
    Deadline, Error,
    cri::{Endpoint, Engine},
    kata::bundle::Bundles,
    pod::PodView,
};

/// The names that are known.
#[derive(Debug, Default)]
pub(crate) struct PodNames {
    /// By ID.
    told: HashMap<String, PodView>,
    bundles: Bundles,
}

impl PodNames {
    /// The names of the pod that was `found`, if one was.
    pub(crate) fn new(found: Option<&FoundPod>) -> Self {
        let mut names = Self::default();
        if let Some(FoundPod { sandbox, names: containers, view, .. }) = found {
            names.told.insert(sandbox.clone(), PodView { container: None, ..view.clone() });
            for (id, name) in containers {
                let view = PodView { container: Some(name.clone()), ..view.clone() };
                names.told.insert(id.clone(), view);
            }
        }
        names
    }

    /// The names of all pods, as the engine at `endpoint` tells.
    ///
    /// # Errors
    /// It does not tell.
    pub(crate) async fn ask(endpoint: &Endpoint, deadline: Deadline) -> Result<Self, Error> {
        let mut engine = Engine::connect(endpoint, deadline).await?;
        let mut names = Self::default();
        for sandbox in engine.sandboxes(deadline).await? {
            names.told.insert(sandbox.id, PodView::new(&sandbox.pod, None));
        }
        for container in engine.all_containers(deadline).await? {
            let Some(pod) = names.told.get(&container.sandbox) else { continue };
            let view = PodView { container: Some(container.name), ..pod.clone() };
            names.told.insert(container.id, view);
        }
        Ok(names)
    }

    /// The pod of the container or the sandbox `id`.
    pub(crate) fn of(&self, id: &str) -> Option<PodView> {
        // A volume without a record has no container.
        let told = self.told.get(id).filter(|_| !id.is_empty()).cloned();
        told.or_else(|| self.bundles.pod(id, &Trust::root()))
    }
}
