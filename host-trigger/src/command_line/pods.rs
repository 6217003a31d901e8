//! The names of pods: on the command line, where IDs take their place, and in what is reported.

use std::path::Path;

use super::{Verb, block_on};
use crate::{
    Deadline, Error,
    cli::target::Target,
    cri::Wanted,
    ops::pod_names::PodNames,
    output::{envelope::Envelope, pods::NamePods},
};

impl Verb {
    /// How to reach the sandbox, and the container if one can be named.
    fn named(&mut self) -> (&mut Target, Option<&mut Option<String>>) {
        match self {
            Self::HotPlug(verb) => (&mut verb.target, Some(&mut verb.container)),
            Self::HotUnplug(verb) => (&mut verb.target, Some(&mut verb.container)),
            Self::List(verb) => (&mut verb.target, Some(&mut verb.container)),
            Self::Inspect(verb) => (&mut verb.target, Some(&mut verb.container)),
            Self::Resize(verb) => (&mut verb.target, Some(&mut verb.container)),
            Self::Throttle(verb) => (&mut verb.target, Some(&mut verb.container)),
            Self::Stats(verb) => (&mut verb.target, Some(&mut verb.container)),
            Self::Repair(verb) => (&mut verb.target, None),
        }
    }

    /// Replaces the names of a pod and of its container, if they are given, by their IDs.
    pub(super) fn find_pod(&mut self, run_dir: Option<&Path>) -> Result<(), Error> {
        let wanted = match self {
            Self::HotPlug(_) => Wanted::Running,
            _ => Wanted::Named,
        };
        let (target, container) = self.named();
        let name = container.as_ref().and_then(|name| name.as_deref());
        let Some(search) = target.pod_search(run_dir, name, wanted) else { return Ok(()) };
        let found = block_on(search.find(Deadline::of_command(target.timeout)))?;
        if let (Some(container), Some(id)) = (container, found.containers.first()) {
            *container = Some(id.clone());
        }
        target.sandbox = Some(found.sandbox.clone());
        target.found = Some(found);
        Ok(())
    }
}

/// Runs `work` on volumes, and adds the names of their pods to what it reports.
pub(super) fn run_named<B: NamePods>(
    names: &PodNames,
    work: impl Future<Output = Result<Envelope<B>, Error>>,
) -> Result<Envelope<B>, Error> {
    let mut envelope = block_on(work)?;
    envelope.body.name_pods(names);
    Ok(envelope)
}
