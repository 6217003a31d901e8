//! What exists at a path: [inode(7)](https://man7.org/linux/man-pages/man7/inode.7.html).

use std::fmt;

use nix::sys::stat::SFlag;

use super::device::NodeOptions;
use crate::{block::DeviceNumber, inode::Inode};

/// What exists at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// A block device.
    Block(DeviceNumber, NodeOptions),
    /// Anything else, by the name of its type.
    Other(&'static str),
}

impl Existing {
    pub(crate) fn of(inode: &Inode) -> Existing {
        match inode.kind {
            SFlag::S_IFBLK => {
                let options =
                    NodeOptions { uid: inode.uid, gid: inode.gid, mode: inode.permissions };
                Existing::Block(inode.device, options)
            }
            SFlag::S_IFDIR => Existing::Other("directory"),
            SFlag::S_IFLNK => Existing::Other("symbolic link"),
            SFlag::S_IFCHR => Existing::Other("character device"),
            SFlag::S_IFIFO => Existing::Other("named pipe"),
            SFlag::S_IFSOCK => Existing::Other("socket"),
            _ => Existing::Other("file"),
        }
    }
}

impl fmt::Display for Existing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Existing::Block(number, _) => write!(f, "block device {number}"),
            Existing::Other(name) => f.write_str(name),
        }
    }
}
