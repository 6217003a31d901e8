//! One container's use of a volume.

use std::fmt;

use crate::{
    block::DeviceNumber,
    cgroup::{self, Access},
    device_node::{NodeKind, NodeOptions, NodePath},
    file_system::Kind,
    scsi::ScsiAddress,
};

/// What a container may do with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AccessMode {
    ReadWrite,
    ReadOnly,
}

impl AccessMode {
    /// The access that the device filter has to grant.
    pub(super) fn access(self) -> Access {
        match self {
            AccessMode::ReadWrite => Access::READ_WRITE,
            AccessMode::ReadOnly => Access::READ,
        }
    }
}

impl fmt::Display for AccessMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AccessMode::ReadWrite => "read-write",
            AccessMode::ReadOnly => "read-only",
        })
    }
}

/// One volume, and its path in a container. Every field was checked.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    pub(crate) controller: Option<String>,
    pub(crate) address: ScsiAddress,
    pub(crate) serial: String,
    pub(crate) size: u64,
    pub(crate) path: NodePath,
    pub(crate) access: AccessMode,
    pub(crate) options: NodeOptions,
    /// Its file system is mounted at the path, in the place of a node.
    pub(crate) mount: Option<Mount>,
}

/// How the file system of a volume is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `None`: as the superblock has it.
    pub(crate) kind: Option<Kind>,
    pub(crate) options: Vec<String>,
    pub(crate) fs_group: Option<FsGroup>,
}

/// The group that gets all files, in the container's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FsGroup {
    pub(crate) gid: u32,
    /// Also where the root directory has it already.
    pub(crate) always: bool,
}

/// How a container got a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Node(NodeKind),
    Mount(Mounted),
}

/// A file system that was mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) kind: Kind,
    /// With the ids of the container's user namespace.
    pub(crate) idmapped: bool,
    /// How many files were given to a group.
    pub(crate) owners_changed: u64,
}

/// What an attach did. The host records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) device: DeviceNumber,
    pub(crate) way: Way,
    /// Directories that did not exist before, outermost first.
    pub(crate) parents_made: Vec<NodePath>,
    /// `None` of a mount, which needs no right.
    pub(crate) filter: Option<cgroup::Mode>,
    pub(crate) allowed_before: bool,
    /// Distinguishes a container from a later one of the same id.
    pub(crate) container_started: u64,
    /// SCSI commands of the disk that had failed before.
    pub(crate) errors_before: u64,
}
