//! The file system of a volume, and a mount of it that is attached nowhere yet.
//!
//! A superblock is shared by all its mounts. So whoever mounts the same disk once more, for a
//! moment and attached nowhere, reaches the superblock whatever containers did with their mounts:
//! that is how it is asked, synced, grown and shut down.
//!
//! | module | does |
//! |---|---|
//! | `kind` | the types of file systems |
//! | `magic` | which one is on a disk |
//! | `options` | mount options |
//! | `context` | [fsopen(2)](https://man7.org/linux/man-pages/man2/fsopen.2.html) and what follows |
//! | `kernel_log` | what the kernel logs about a disk |
//! | `detached` | makes a mount that is attached nowhere |
//! | `owners` | gives all files to a group |
//! | `space` | [statvfs(3)](https://man7.org/linux/man-pages/man3/statvfs.3.html) |
//! | `superblock` | a mounted superblock: write back, shut down |
//! | `grow` | grows it while it is mounted |

mod context;
mod detached;
mod grow;
mod kernel_log;
mod kind;
mod magic;
mod options;
mod owners;
mod space;
mod superblock;

pub use detached::{Detached, MountRequest};
pub use kind::Kind;
pub use owners::{Limit, Owners};
pub use space::Space;
pub use superblock::Superblock;
#[cfg(feature = "fuzz")]
pub(crate) use {kernel_log::line_about, magic::decide, options::Options};

/// A disk as a source of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The kernel's name of the disk.
    pub disk: String,
    /// Its number.
    pub number: crate::block::DeviceNumber,
    /// The name of its node: the last component of what mountinfo shows as the source.
    pub node: String,
}
