//! Removes the node of an attachment, whatever the container did with it.
//!
//! A bind node is found by its identity, wherever it is now, and a mknod node by its path. What
//! remains of a node that no device filter protects is looked for in every mount namespace; if
//! something still refers to it then, the disk's number is kept.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use super::{
    agent_proc::AgentProc,
    copies,
    device::{NodeKind, NodeOptions},
    existing::Existing,
    identity::Identity,
    left::LeftBehind,
    location::Location,
    path::NodePath,
    unmount::{Unmount, Unmounted, shown},
    watch::{self, References},
};
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    namespace::Target,
    text::displayed,
};

/// Which node to remove.
#[derive(Debug, Clone)]
pub struct Removal {
    container: Arc<str>,
    path: NodePath,
    number: Option<DeviceNumber>,
    guarded: bool,
    was_bind: bool,
    identity: Identity,
}

/// What a removal did.
#[derive(Debug, Default)]
pub struct Removed {
    /// Owner and mode of the node; `None`: there was none.
    pub options: Option<NodeOptions>,
    /// What could not be removed.
    pub left: Vec<LeftBehind>,
}

impl Removal {
    /// The node of the volume `serial` at `path` of a container. `number`: `None` where the disk is
    /// gone and its number may be another's. `guarded`: whether a device filter protects it.
    pub fn new(
        serial: &str,
        container: &str,
        path: &NodePath,
        number: Option<DeviceNumber>,
        guarded: bool,
    ) -> Removal {
        let identity = Identity::new(serial, container, path);
        let (container, path) = (container.into(), path.clone());
        Removal { container, path, number, guarded, was_bind: false, identity }
    }

    /// The host has recorded that it was a bind node. If the container has unmounted it, the file
    /// that was under it is still to be removed.
    #[must_use]
    pub fn of_bind_node(self, was_bind: bool) -> Removal {
        Removal { was_bind, ..self }
    }

    /// Removes the node from a container. It may be anywhere; a mknod node is at `location`. Must
    /// come before the disk is deleted.
    pub fn from(&self, target: &Target, location: Option<&Location>, deadline: Instant) -> Removed {
        let mut removed = Removed::default();
        match self.unmount(target, location, deadline) {
            Ok(Unmounted { options, left, .. }) => {
                (removed.options, removed.left) = (options, left)
            }
            Err(error) => removed.left.push(self.left(error.message())),
        }
        let mut was_mknod = false;
        if removed.options.is_none()
            && let Some(location) = location
        {
            match self.unlink(location) {
                Ok(options) => (removed.options, was_mknod) = (options, options.is_some()),
                Err(error) => removed.left.push(self.left(error.message())),
            }
        }
        self.keep_if_referenced(was_mknod, deadline, &mut removed.left);
        removed
    }

    /// The disk stays after all, because the request failed: its number need not be kept.
    pub fn roll_back(serial: &str, container: &str, path: &NodePath) {
        watch::keep_none(&Identity::new(serial, container, path));
    }

    /// The container is gone, and its mounts with it, but perhaps not what refers to them.
    pub fn after_its_end(&self, deadline: Instant) -> Removed {
        let mut removed = Removed::default();
        self.keep_if_referenced(false, deadline, &mut removed.left);
        removed
    }

    fn unmount(
        &self,
        target: &Target,
        location: Option<&Location>,
        deadline: Instant,
    ) -> Result<Unmounted> {
        let directory = location.filter(|location| location.missing().is_empty());
        let directory = directory.map(|location| location.directory().try_clone()).transpose();
        let directory = directory.map_err(Error::system("fcntl", &"a directory"))?;
        // Later steps need time, too, whatever the container does with its mounts.
        let now = Instant::now();
        let deadline = now + deadline.saturating_duration_since(now) / 2;
        let unmount = self.task(deadline, directory)?;
        // A container may mount over the root of its namespace; its own processes stay below.
        let roots: Vec<OwnedFd> =
            target.root().ok().and_then(|root| root.existing("/").ok()?).into_iter().collect();
        target.enter_even_ended(move || unmount.run(&roots))?.finish(deadline)
    }

    fn task(&self, deadline: Instant, directory: Option<OwnedFd>) -> Result<Unmount> {
        Ok(Unmount {
            identity: self.identity.clone(),
            number: self.number,
            was_bind: self.was_bind,
            file: directory.map(|directory| (directory, self.path.name().to_owned())),
            watch_for: (!self.guarded).then(|| displayed(&self.container)),
            deadline,
            proc: AgentProc::open()?,
        })
    }

    fn unlink(&self, location: &Location) -> Result<Option<NodeOptions>> {
        let is_ours = matches!((location.find_node()?, self.number),
            (Some((found, NodeKind::Mknod)), Some(number)) if found == number);
        let Some(Existing::Block(_, options)) = location.existing()?.filter(|_| is_ours) else {
            return Ok(None);
        };
        Ok(location.unlink(self.path.name())?.then_some(options))
    }

    /// `was_mknod`: a mknod node was removed, to which there may be links and descriptors.
    fn keep_if_referenced(&self, was_mknod: bool, deadline: Instant, left: &mut Vec<LeftBehind>) {
        let references = match watch::is_referenced(&self.identity) {
            Some(false) => References::None,
            Some(true) => {
                let unmount = |end| self.task(end, None);
                copies::remove(&self.container, &self.identity, deadline, &unmount);
                watch::keep(&self.identity, self.number)
            }
            None => match self.number.filter(|_| was_mknod && !self.guarded) {
                Some(number) => watch::keep_unwatched(&self.identity, &self.container, number),
                None => References::None,
            },
        };
        if references == References::Unknown {
            left.push(self.left(
                "something may still refer to the node, which no device filter protects: \
                 the guest keeps its device number until it ends",
            ));
        }
    }

    fn left(&self, reason: impl Into<String>) -> LeftBehind {
        LeftBehind::new(shown(self.path.as_str().as_bytes()), reason)
    }
}
