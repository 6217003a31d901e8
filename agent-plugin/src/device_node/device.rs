//! What a node is for.

use std::fmt;

use crate::{block::DeviceNumber, error::Result, ids::Ids};

/// How a container gets a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Made in its own file system.
    Mknod,
    /// Mounted there.
    Bind,
}

/// Owner and mode of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeOptions {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl NodeOptions {
    /// Translates the ids of a container to those of the guest.
    ///
    /// # Errors
    /// The container has no such user or group.
    pub fn outside(self, ids: &Ids) -> Result<NodeOptions> {
        let (uid, gid) = ids.outside(self.uid, self.gid)?;
        Ok(NodeOptions { uid, gid, ..self })
    }
}

impl fmt::Display for NodeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owner {}:{} and mode {:04o}", self.uid, self.gid, self.mode)
    }
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The disk's number.
    pub number: DeviceNumber,
    /// With the guest's user and group ids, not the container's.
    pub options: NodeOptions,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// Whether a device filter of the container protects the disk's number.
    pub guarded: bool,
}
