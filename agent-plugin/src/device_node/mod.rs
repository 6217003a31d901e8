//! How a container gets a device node at a path.
//!
//! | way | where | how |
//! |---|---|---|
//! | [`Way::Mknod`] | a tmpfs or ramfs of the container alone | made under a temporary name, proved, renamed |
//! | [`Way::Bind`] | a container with a user namespace; nodev mounts; every file system that somebody else can see | a node where nobody else is, mounted over an empty file |
//!
//! A node carries a number and no more: seen from elsewhere, it stands for another disk. And one on
//! a file system that was mounted in a user namespace, or without device nodes, does not open.
//!
//! | file | knows |
//! |---|---|
//! | `path` | what a path may be |
//! | `place` | the directory, and which way leads there |
//! | `occupant` | what is at a path |
//! | `made` | the first way |
//! | `bound` | the second |
//! | `parents` | directories that did not exist |

mod bound;
mod made;
mod occupant;
mod parents;
mod path;
mod place;

use std::time::Instant;

use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    namespace::Target,
};

pub use occupant::{NodeOptions, Occupant};
pub use parents::remove_parents;
pub use path::{NodePath, TEMPORARY};
pub use place::Place;

/// How a container gets a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Made in its own file system.
    Mknod,
    /// Mounted there.
    Bind,
}

/// What a node shall be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The disk's.
    pub number: DeviceNumber,
    /// As this side numbers users and groups, not as the container does.
    pub options: NodeOptions,
    /// The container shall not write to it.
    pub read_only: bool,
}

/// A node that we made.
#[derive(Debug)]
pub enum Node {
    /// In the container's file system.
    Made(made::Node),
    /// Over a file of it.
    Bound(bound::Node),
}

impl Node {
    /// How it was made.
    pub fn way(&self) -> Way {
        match self {
            Node::Made(_) => Way::Mknod,
            Node::Bound(_) => Way::Bind,
        }
    }

    /// Opens that inode, not its name, as a process of the container could (as far as the mount
    /// decides).
    ///
    /// # Errors
    /// The node cannot be used. `Ok(false)`: the disk is announced in sysfs and not open for
    /// business yet.
    pub fn prove(&self) -> Result<bool> {
        match self {
            Node::Made(node) => node.prove(),
            Node::Bound(node) => node.prove(),
        }
    }

    /// Lets the node appear at its path. One that is made is usable at once; one that is mounted, a
    /// moment later: until then the path is an empty file that nobody may open.
    ///
    /// # Errors
    /// Something else has the name, or the container moved our node.
    pub fn publish(&mut self, deadline: Instant) -> Result<()> {
        match self {
            Node::Made(node) => node.publish(),
            Node::Bound(node) => node.publish(deadline),
        }
    }

    /// The directories that were made for it, outermost first; all of them once it is published.
    pub fn parents_made(&self) -> Vec<String> {
        match self {
            Node::Made(node) => node.parents_made(),
            Node::Bound(node) => node.parents_made(),
        }
    }

    /// Removes the node, and the directories that were made for it.
    ///
    /// # Errors
    /// It is still somewhere: the container moved it.
    pub fn remove(&self, deadline: Instant) -> Result<()> {
        match self {
            Node::Made(node) => node.remove(),
            Node::Bound(node) => node.remove(deadline),
        }
    }
}

impl Place {
    /// Makes a node for this place, by the way that leads there. The calling thread's umask must be
    /// 0.
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
        match self.check(target)? {
            Way::Mknod => Ok(Node::Made(made::Node::new(self, id, device)?)),
            Way::Bind => Ok(Node::Bound(bound::Node::new(self, target, device, deadline)?)),
        }
    }

    /// Removes the node of `number` that is at the path, by whichever way it came there. Says by
    /// which; `None`: there was none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(
        &self,
        target: &Target,
        number: DeviceNumber,
        deadline: Instant,
    ) -> Result<Option<Way>> {
        let way = match self.find_node()? {
            Some((found, way)) if found == number => way,
            _ => return Ok(None),
        };
        let removed = match way {
            Way::Mknod => self.unlink(self.path().name())?,
            Way::Bind => bound::remove(self, target, number, deadline)?,
        };
        Ok(removed.then_some(way))
    }
}

/// A path that came between a look and a change.
fn moved(path: &NodePath) -> Error {
    Error::NodeMoved { path: path.as_str().to_owned() }
}
