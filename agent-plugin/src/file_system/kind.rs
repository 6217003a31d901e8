//! The file systems that can be mounted:
//! [filesystems(5)](https://man7.org/linux/man-pages/man5/filesystems.5.html).

use std::fmt;

/// The type of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As the other two, a version of one format.
    Ext2,
    /// With a journal.
    Ext3,
    /// With extents, and whatever came later.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT, with long names.
    Vfat,
    /// Read-only.
    Erofs,
    /// Read-only.
    Squashfs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 8] = [
        Kind::Ext2,
        Kind::Ext3,
        Kind::Ext4,
        Kind::Xfs,
        Kind::Btrfs,
        Kind::Vfat,
        Kind::Erofs,
        Kind::Squashfs,
    ];

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext2 => "ext2",
            Kind::Ext3 => "ext3",
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
            Kind::Vfat => "vfat",
            Kind::Erofs => "erofs",
            Kind::Squashfs => "squashfs",
        }
    }

    /// The type of this name.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether its images cannot be written to.
    pub fn is_read_only(self) -> bool {
        matches!(self, Kind::Erofs | Kind::Squashfs)
    }

    /// Whether its files have a device number of their own, which is not that of the disk.
    pub fn has_own_numbers(self) -> bool {
        self == Kind::Btrfs
    }

    /// Whether both are versions of the same format.
    pub fn is_like(self, other: Kind) -> bool {
        let ext = |kind| matches!(kind, Kind::Ext2 | Kind::Ext3 | Kind::Ext4);
        self == other || ext(self) && ext(other)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::FILE_SYSTEMS;

    #[test]
    fn the_api_has_the_same_names() {
        assert_eq!(Kind::ALL.map(Kind::name), FILE_SYSTEMS);
        for kind in Kind::ALL {
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
        assert_eq!(Kind::named("ext5"), None);
    }

    #[test]
    fn the_versions_of_ext_are_one_format() {
        assert!(Kind::Ext2.is_like(Kind::Ext4) && Kind::Xfs.is_like(Kind::Xfs));
        assert!(!Kind::Ext4.is_like(Kind::Xfs) && !Kind::Xfs.is_like(Kind::Btrfs));
    }
}
