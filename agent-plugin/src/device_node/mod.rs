//! Device nodes in containers.
//!
//! | kind | where | how |
//! |---|---|---|
//! | [`NodeKind::Mknod`] | a tmpfs or ramfs of the container alone, if a device filter protects the number | made under a temporary name, opened, renamed |
//! | [`NodeKind::Bind`] | everywhere else: a container without a device filter or with a user namespace; nodev mounts; every file system that is visible outside of the container | made on a private tmpfs, mounted over an empty file |
//!
//! A node holds a device number and nothing else: for another kernel (the host's, another guest's)
//! it is another disk. And a node on a file system that was mounted in a user namespace, or with
//! `nodev`, cannot be opened.
//!
//! | module | does |
//! |---|---|
//! | `path` | checks the path of a node |
//! | `device` | what a node is for: kind, owner, mode, device number |
//! | `location` | finds the directory for a node, and decides on the kind |
//! | `existing` | describes what exists at a path |
//! | `file_system` | types of file systems |
//! | `mknod`, `bind` | make, publish and remove a node of one kind |
//! | `open` | opens a node by descriptor |
//! | `parents` | makes and removes directories that did not exist |
//! | `identity` | whose a bind node is, as mountinfo shows it |
//! | `removal`, `unmount`, `copies` | remove a node: from a container, from one mount namespace, from all others |
//! | `watch` | whether something still refers to a node that was removed, and its number until then |
//! | `agent_proc` | the agent's `/proc`, for a thread in another mount namespace |
//! | `left` | what a removal had to leave behind |

mod agent_proc;
mod bind;
mod copies;
mod device;
mod existing;
mod file_system;
mod identity;
mod left;
mod location;
mod mknod;
mod open;
mod parents;
mod path;
mod removal;
mod unmount;
mod watch;

use std::{os::fd::OwnedFd, time::Instant};

use crate::{
    error::{BoxedError, Result},
    namespace::Target,
};

pub(crate) use agent_proc::AgentProc;
pub(crate) use identity::Identity;
pub(crate) use parents::Parents;
pub(crate) use unmount::{Place, is_over, place, reach_both, shown};

pub use device::{Device, NodeKind, NodeOptions};
pub use existing::Existing;
pub use left::LeftBehind;
pub use location::Location;
pub use parents::remove_parents;
pub use path::{NodePath, TEMPORARY};
pub use removal::{Removal, Removed};
pub use watch::sweep;

/// A node that we made.
#[derive(Debug)]
pub enum Node {
    /// In the container's file system.
    Mknod(mknod::MknodNode),
    /// Mounted over a file of it.
    Bind(bind::BindNode),
}

impl Node {
    /// How it was made.
    pub fn kind(&self) -> NodeKind {
        match self {
            Node::Mknod(_) => NodeKind::Mknod,
            Node::Bind(_) => NodeKind::Bind,
        }
    }

    /// Opens the node's inode, not its name, as a process of the container could (as far as the
    /// mount decides).
    ///
    /// # Errors
    /// The node cannot be used. `Ok(false)`: the disk is in sysfs and not ready yet (ENXIO).
    pub fn verify_open(&self) -> Result<bool> {
        match self {
            Node::Mknod(node) => node.verify_open(),
            Node::Bind(node) => node.verify_open(),
        }
    }

    /// Makes the node appear at its path. A mknod node is usable immediately, a bind node a moment
    /// later: until then the path is an empty file without permission bits.
    ///
    /// # Errors
    /// Something else has the name, or the container moved our node.
    pub fn publish(&mut self, deadline: Instant) -> Result<()> {
        publish_all(&mut [self], deadline).map_err(|(_, error)| error)
    }

    /// The directories that were made for it, outermost first; before it is published, those that
    /// will be made.
    pub fn parents_made(&self) -> Vec<String> {
        match self {
            Node::Mknod(node) => node.parents_made(),
            Node::Bind(node) => node.parents_made(),
        }
    }

    /// Removes the node, and the directories that were made for it.
    ///
    /// # Errors
    /// The node still exists somewhere: the container moved it.
    pub fn remove(&self, deadline: Instant) -> Result<()> {
        match self {
            Node::Mknod(node) => node.remove(),
            Node::Bind(node) => node.remove(deadline),
        }
    }
}

/// How many nodes are published together: each needs some descriptors more meanwhile.
const MOST_TOGETHER: usize = 16;

/// Publishes nodes in their order, as [`Node::publish`] does: those of a container that are mounted
/// are published together.
///
/// # Errors
/// The index of the node that cannot be published, and why. Those before it are.
pub fn publish_all(nodes: &mut [&mut Node], deadline: Instant) -> Result<(), (usize, BoxedError)> {
    let mut first = 0;
    while first < nodes.len() {
        let mut together: Vec<&mut bind::BindNode> = Vec::new();
        for node in nodes[first..].iter_mut().take(MOST_TOGETHER) {
            match &mut **node {
                Node::Bind(node)
                    if together.last().is_none_or(|last| last.container() == node.container()) =>
                {
                    together.push(node);
                }
                _ => break,
            }
        }
        let count = together.len();
        bind::BindNode::publish_all(&mut together, deadline)
            .map_err(|(index, error)| (first + index, error))?;
        first += count;
        if count == 0
            && let Node::Mknod(node) = &mut *nodes[first]
        {
            node.publish().map_err(|error| (first, error))?;
            first += 1;
        }
    }
    Ok(())
}

/// A node that is to be made at a location: for which container, of which volume, and what.
pub struct Draft<'a> {
    pub location: &'a Location,
    pub target: &'a Target,
    pub id: &'a str,
    pub device: Device,
}

/// Makes what [`Location::make_of`] needs for nodes that are to be mounted, for all of them
/// together. The container gets nothing of it yet, and what is dropped is gone.
///
/// # Errors
/// The index of the node that cannot be made, and why.
pub fn private_nodes(
    drafts: &[Draft<'_>],
    deadline: Instant,
) -> Result<Vec<Option<OwnedFd>>, (usize, BoxedError)> {
    let (mut all, mut indexes, mut nodes) =
        (Vec::with_capacity(drafts.len()), Vec::new(), Vec::new());
    for (index, draft) in drafts.iter().enumerate() {
        let Draft { location, target, id, device } = draft;
        all.push(None);
        let kind = location.check(target, device.guarded).map_err(|error| (index, error))?;
        if kind == NodeKind::Bind {
            indexes.push(index);
            nodes.push((*device, Identity::new(id, &target.id, location.path())));
        }
    }
    let Some(&first) = indexes.first() else { return Ok(all) };
    let made = bind::private_nodes(drafts[first].target, nodes, deadline);
    let (mounts, failed) = made.map_err(|error| (first, error))?;
    if let Some(error) = failed {
        return Err((indexes[mounts.len()], error));
    }
    for (index, mount) in indexes.into_iter().zip(mounts) {
        all[index] = Some(mount);
    }
    Ok(all)
}

impl Location {
    /// Makes a node for this location, of the kind that is possible there. The calling thread's
    /// umask must be 0.
    ///
    /// # Errors
    /// Nothing is left behind.
    pub fn make(
        self,
        target: &Target,
        id: &str,
        device: Device,
        deadline: Instant,
    ) -> Result<Node> {
        let draft = Draft { location: &self, target, id, device };
        let mut private = private_nodes(&[draft], deadline).map_err(|(_, error)| error)?;
        self.make_of(target, id, device, private.pop().flatten())
    }

    /// As [`Location::make`], with what [`private_nodes`] has made for it.
    ///
    /// # Errors
    /// As of [`Location::make`].
    pub fn make_of(
        self,
        target: &Target,
        id: &str,
        device: Device,
        private: Option<OwnedFd>,
    ) -> Result<Node> {
        match (self.check(target, device.guarded)?, private) {
            (NodeKind::Mknod, _) => Ok(Node::Mknod(mknod::MknodNode::new(self, id, device)?)),
            (NodeKind::Bind, Some(mount)) => {
                let identity = Identity::new(id, &target.id, self.path());
                Ok(Node::Bind(bind::BindNode::new(self, target, identity, device, mount)))
            }
            // The container has changed what the kind depends on.
            (NodeKind::Bind, None) => Err(self.moved()),
        }
    }
}
