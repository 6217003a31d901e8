//! Which sandbox and which container are meant by names. A name outlives what it names: a pod that
//! was made again and a container that was restarted have the old one beside the new one for a
//! while. The one that runs is meant, and if that is not one, nothing is chosen.

use super::engine::{ContainerState, PodContainer, PodSandbox};
use crate::{Error, pod::PodName};

/// The most names that an error lists.
const MAX_NAMES: usize = 16;

/// What a command wants to know of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A container that runs: the named one, or the only one.
    Running,
    /// The containers that were named, the newest first. Volumes may still be those of an earlier
    /// one.
    Named,
}

/// The sandbox of `pod`.
///
/// # Errors
/// There is no such pod, or its sandbox is not ready, or several are.
pub(crate) fn sandbox(pod: &PodName, all: &[PodSandbox]) -> Result<PodSandbox, Error> {
    let its = || all.iter().filter(|one| one.pod == *pod);
    let ready: Vec<_> = its().filter(|one| one.is_ready).collect();
    match (&ready[..], its().max_by_key(|one| one.attempt)) {
        ([only], _) => Ok((*only).clone()),
        ([], None) => {
            let elsewhere = all.iter().filter(|one| one.is_ready && one.pod.name == pod.name);
            let elsewhere = names(elsewhere.map(|one| one.pod.to_string()));
            Err(Error::PodNotFound { pod: pod.to_string(), elsewhere })
        }
        ([], Some(last)) => {
            Err(Error::PodNotReady { pod: pod.to_string(), sandbox: last.id.clone() })
        }
        (_, _) => {
            let found = names(ready.iter().map(|one| one.id.clone()));
            Err(Error::PodAmbiguous { pod: pod.to_string(), found })
        }
    }
}

/// The containers of `pod` that are meant by `name`; none if no name is needed and none is given.
///
/// # Errors
/// There is no such container, or none or several of them run where one must.
pub(crate) fn containers(
    pod: &PodName,
    name: Option<&str>,
    wanted: Wanted,
    all: Vec<PodContainer>,
) -> Result<Vec<PodContainer>, Error> {
    let Some(name) = name else {
        return match wanted {
            Wanted::Named => Ok(Vec::new()),
            Wanted::Running => only_running(pod, all),
        };
    };
    let known = names(all.iter().map(|one| one.name.clone()));
    let mut its: Vec<_> = all.into_iter().filter(|one| one.name == name).collect();
    // The newest first; one that runs before one that waits to be started.
    its.sort_by_key(|one| (one.state == ContainerState::Running, one.attempt));
    its.reverse();
    let Some(first) = its.first() else {
        let (pod, container) = (pod.to_string(), name.to_owned());
        return Err(Error::PodContainerNotFound { pod, container, found: known });
    };
    if wanted == Wanted::Named {
        return Ok(its);
    }
    let running: Vec<_> = its.iter().filter(|one| one.state == ContainerState::Running).collect();
    match &running[..] {
        [only] => Ok(vec![(*only).clone()]),
        [] => {
            let (pod, container) = (pod.to_string(), name.to_owned());
            Err(Error::PodContainerNotRunning { pod, container, state: first.state.text() })
        }
        _ => {
            let found = names(running.iter().map(|one| one.id.clone()));
            let (pod, container) = (pod.to_string(), name.to_owned());
            Err(Error::PodContainerTwice { pod, container, found })
        }
    }
}

/// The only container of a pod.
fn only_running(pod: &PodName, all: Vec<PodContainer>) -> Result<Vec<PodContainer>, Error> {
    let running = all.into_iter().filter(|one| one.state == ContainerState::Running);
    let running: Vec<_> = running.collect();
    match &running[..] {
        [_] => Ok(running),
        [] => Err(Error::PodWithoutContainer { pod: pod.to_string() }),
        _ => {
            let found = names(running.into_iter().map(|one| one.name));
            Err(Error::PodContainerNotNamed { pod: pod.to_string(), found })
        }
    }
}

/// Names for a message: each once, in their order, and not too many.
fn names(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = all.collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(MAX_NAMES);
    names
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
