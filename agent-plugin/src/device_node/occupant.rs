//! What is at a path, and what a node there shall be:
//! [inode(7)](https://man7.org/linux/man-pages/man7/inode.7.html).

use std::fmt;

use nix::sys::stat::SFlag;

use crate::{block::DeviceNumber, error::Result, ids::Ids, inode::Inode};

/// What a node shall be.
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
    /// What a container with these ids calls so, by our own numbers.
    ///
    /// # Errors
    /// It knows no such owner.
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

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// A block device.
    Block(DeviceNumber, NodeOptions),
    /// Anything else, by its name.
    Other(&'static str),
}

impl Occupant {
    pub(super) fn of(inode: &Inode) -> Occupant {
        match inode.kind {
            SFlag::S_IFBLK => {
                let options =
                    NodeOptions { uid: inode.uid, gid: inode.gid, mode: inode.permissions };
                Occupant::Block(inode.device, options)
            }
            SFlag::S_IFDIR => Occupant::Other("directory"),
            SFlag::S_IFLNK => Occupant::Other("symbolic link"),
            SFlag::S_IFCHR => Occupant::Other("character device"),
            SFlag::S_IFIFO => Occupant::Other("named pipe"),
            SFlag::S_IFSOCK => Occupant::Other("socket"),
            _ => Occupant::Other("file"),
        }
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Occupant::Block(number, _) => write!(f, "block device {number}"),
            Occupant::Other(name) => f.write_str(name),
        }
    }
}
