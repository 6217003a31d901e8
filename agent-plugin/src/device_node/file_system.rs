//! Types of file systems: [statfs(2)](https://man7.org/linux/man-pages/man2/statfs.2.html).

use std::fmt;

use nix::sys::statfs::{FsType, TMPFS_MAGIC};

const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
const NINE_P_MAGIC: FsType = FsType(0x0102_1997);

/// Kernel file systems in which no file can be made: proc, sysfs, devpts, cgroup2, cgroup, debugfs,
/// tracefs, securityfs, bpf, nsfs.
const KERNELS: [FsType; 10] = [
    FsType(0x9fa0),
    FsType(0x6265_6572),
    FsType(0x1cd1),
    FsType(0x6367_7270),
    FsType(0x0027_e0eb),
    FsType(0x6462_6720),
    FsType(0x7472_6163),
    FsType(0x7363_6673),
    FsType(0xcafe_4a11),
    FsType(0x6e73_6673),
];

/// The type of a file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileSystem(FsType);

impl FileSystem {
    /// From `statfs`, and whether mountinfo shows it in memory: 9p reports the type of the file
    /// system on the server.
    pub(super) fn new(found: FsType, in_memory: bool) -> FileSystem {
        match found {
            TMPFS_MAGIC | RAMFS_MAGIC if !in_memory => FileSystem(NINE_P_MAGIC),
            known => FileSystem(known),
        }
    }

    /// Whether it is in the kernel's memory and answers immediately, whatever the container does.
    pub(super) fn is_in_memory(self) -> bool {
        matches!(self.0, TMPFS_MAGIC | RAMFS_MAGIC)
    }

    /// Whether it is a kernel file system in which no file can be made.
    pub(super) fn is_the_kernels(self) -> bool {
        KERNELS.contains(&self.0)
    }
}

/// "tmpfs", or the number of an uncommon one.
impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0.0 {
            0x0102_1994 => "tmpfs",
            0x8584_58f6 => "ramfs",
            0x794c_7630 => "overlay",
            0x6573_5546 => "fuse (virtio-fs)",
            0x0102_1997 => "9p",
            0xef53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x6969 => "nfs",
            0x9fa0 => "proc",
            0x6265_6572 => "sysfs",
            0x1cd1 => "devpts",
            other => return write!(f, "file system type {other:#x}"),
        };
        f.write_str(name)
    }
}
