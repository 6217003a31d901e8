//! Probe: what the guest can do, and what exists at paths of a container. Changes nothing.

use super::{
    Found,
    operation::{Caller, Deadline, Done, Operation, Output},
    request::Checked,
};
use crate::{
    device_node::NodePath,
    error::Result,
    namespace::Target,
    text::displayed,
    volume::{self, Failed, Stages},
};

pub(super) struct Probe {
    target: Option<Target>,
    paths: Vec<NodePath>,
    mount_paths: Vec<NodePath>,
}

impl Probe {
    /// # Errors
    /// The container does not run.
    pub(super) fn new(checked: &Checked, found: &[Found]) -> Result<Probe> {
        let target = match (&checked.container_id, found) {
            (Some(id), [found, ..]) => Some(found.running(id)?),
            _ => None,
        };
        let (paths, mount_paths) = (checked.paths.clone(), checked.mount_paths.clone());
        Ok(Probe { target, paths, mount_paths })
    }
}

impl Operation for Probe {
    fn run(self: Box<Self>, _: Deadline, _: &mut Stages, _: &Caller) -> Done {
        let result = volume::probe(self.target.as_ref(), &self.paths, &self.mount_paths);
        let about = self.target.as_ref().map(|target| displayed(&target.id));
        Done {
            result: result.map(Output::Probed).map_err(Failed::from),
            about: about.unwrap_or_default(),
        }
    }
}
