//! The sandbox and the containers that the names of a pod mean, as the container engine knows them.

use std::{ffi::OsStr, path::PathBuf};

use block_volume_api::block_volume::Reason;

use super::signals::Signals;
use crate::{
    Deadline, Error,
    cri::{Endpoint, Engine, Wanted, lookup},
    kata::sandbox,
    pod::{PodName, PodView},
    stopwatch::Stopwatch,
};

/// Names, and what is wanted of them.
#[derive(Debug)]
pub(crate) struct PodSearch<'a> {
    pub(crate) pod: &'a PodName,
    /// The container's name in the pod.
    pub(crate) container: Option<&'a str>,
    pub(crate) wanted: Wanted,
    /// The engine's socket, if it is named.
    pub(crate) cri: Option<&'a OsStr>,
    /// The state directories of Kata; `None` if the sandbox needs none.
    pub(crate) roots: Option<Vec<PathBuf>>,
}

/// What the names meant when the engine was asked.
#[derive(Debug, Clone)]
pub struct FoundPod {
    /// The sandbox's ID.
    pub sandbox: String,
    /// The IDs of the containers of the name, the newest first; none if none was named.
    pub containers: Vec<String>,
    /// The names.
    pub view: PodView,
    /// All containers of the pod: ID and name.
    pub names: Vec<(String, String)>,
    pub(crate) deadline: Deadline,
    pub(crate) watch: Stopwatch,
}

impl PodSearch<'_> {
    /// Asks the container engine.
    ///
    /// # Errors
    /// The engine does not tell, the pod or the container does not exist, does not run or is not
    /// the only one of this name, or the pod is not Kata's.
    pub(crate) async fn find(&self, deadline: Deadline) -> Result<FoundPod, Error> {
        let mut watch = Stopwatch::new();
        let mut signals = Signals::catch()?;
        let mut found = signals.unless_caught(self.ask(deadline)).await?;
        watch.lap("pod");
        found.watch = watch;
        Ok(found)
    }

    async fn ask(&self, deadline: Deadline) -> Result<FoundPod, Error> {
        let Self { pod, container, wanted, .. } = *self;
        let mut engine = Engine::connect(&Endpoint::find(self.cri)?, deadline).await?;
        let sandbox = lookup::sandbox(pod, &engine.sandboxes(deadline).await?)?;
        if let Some(roots) = &self.roots
            && !sandbox::has(roots, &sandbox.id)?
        {
            let (pod, searched) = (pod.to_string(), roots.clone());
            let handler = Some(sandbox.handler).filter(|handler| !handler.is_empty());
            return Err(Error::NotKata { pod, sandbox: sandbox.id, handler, searched });
        }
        let all = engine.containers(&sandbox.id, deadline).await?;
        let names = all.iter().map(|one| (one.id.clone(), one.name.clone())).collect();
        let containers = lookup::containers(pod, container, wanted, all)?;
        let name = containers.first().map(|container| container.name.clone());
        let containers = containers.into_iter().map(|container| container.id).collect();
        let (sandbox, view) = (sandbox.id, PodView::new(pod, name));
        Ok(FoundPod { sandbox, containers, view, names, deadline, watch: Stopwatch::new() })
    }

    /// Explains `error` of a command on what was `found`: if the container is gone because it was
    /// restarted meanwhile, that is the error.
    pub(crate) async fn explain(&self, error: Error, found: &FoundPod) -> Error {
        let is_gone = matches!(
            error,
            Error::SandboxNotFound { .. }
                | Error::ContainerNotFound { .. }
                | Error::Guest {
                    reason: Reason::REASON_CONTAINER_NOT_FOUND
                        | Reason::REASON_CONTAINER_NOT_RUNNING,
                    ..
                }
        );
        let (Some(id), true) = (found.containers.first(), is_gone) else { return error };
        match self.ask(found.deadline).await {
            Ok(now) if now.containers.first() != Some(id) => Error::PodContainerRestarted {
                pod: self.pod.to_string(),
                container: found.view.container.clone().unwrap_or_default(),
                id: id.clone(),
                source: Box::new(error),
            },
            Err(ended @ Error::PodContainerNotRunning { .. }) => ended,
            _ => error,
        }
    }
}
