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

use std::time::Instant;

use crate::{error::Result, namespace::Target};

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
        match self {
            Node::Mknod(node) => node.publish(),
            Node::Bind(node) => node.publish(deadline),
        }
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
        match self.check(target, device.guarded)? {
            NodeKind::Mknod => Ok(Node::Mknod(mknod::MknodNode::new(self, id, device)?)),
            NodeKind::Bind => {
                let identity = Identity::new(id, &target.id, self.path());
                let node = bind::BindNode::new(self, target, identity, device, deadline)?;
                Ok(Node::Bind(node))
            }
        }
    }
}
