//! How much a file system has: [statvfs(3)](https://man7.org/linux/man-pages/man3/statvfs.3.html).

use std::os::fd::OwnedFd;

use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::error::{Error, Result};

/// How much a file system has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// In total.
    pub bytes: u64,
    /// Free.
    pub bytes_free: u64,
    /// Free for users other than root.
    pub bytes_available: u64,
    /// In total; 0 where they are not counted.
    pub inodes: u64,
    /// Free.
    pub inodes_free: u64,
    /// Whether the mount or the superblock is read-only.
    pub read_only: bool,
}

impl Space {
    /// Asks the file system that a directory is on. `O_PATH` is enough.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn of(directory: &OwnedFd) -> Result<Space> {
        let found = fstatvfs(directory).map_err(Error::system("fstatvfs", &"a mount"))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.fragment_size());
        Ok(Space {
            bytes: bytes(found.blocks()),
            bytes_free: bytes(found.blocks_free()),
            bytes_available: bytes(found.blocks_available()),
            inodes: found.files(),
            inodes_free: found.files_free(),
            read_only: found.flags().contains(FsFlags::ST_RDONLY),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_space_of_a_file_system_is_consistent() {
        let space = Space::of(&std::fs::File::open("/").unwrap().into()).unwrap();
        assert!(space.bytes >= space.bytes_free && space.bytes_free >= space.bytes_available);
        assert!(space.bytes > 0 && space.inodes >= space.inodes_free);
    }
}
