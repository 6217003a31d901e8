//! Grows a mounted file system to the size of its disk, by the ioctls of its driver: ext4
//! (`EXT4_IOC_RESIZE_FS`), xfs (`XFS_IOC_FSGROWFSDATA`), btrfs (`BTRFS_IOC_RESIZE`). No tool of the
//! guest is needed.

use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

use super::{kind::Kind, superblock::Superblock};

/// `struct xfs_fsop_geom_v1`, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct XfsGeometry {
    block_size: u32,
    others: [u32; 6],
    inode_percent: u32,
    rest: [u64; 10],
}

/// `struct xfs_growfs_data`.
#[repr(C)]
struct XfsGrow {
    blocks: u64,
    inode_percent: u32,
    padding: u32,
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct BtrfsArguments {
    fd: i64,
    name: [u8; 4088],
}

// The kernel reads and writes these numbers of bytes.
const _: () = assert!(size_of::<XfsGeometry>() == 112);
const _: () = assert!(size_of::<XfsGrow>() == 16);
const _: () = assert!(size_of::<BtrfsArguments>() == 4096);

impl Superblock {
    /// Grows it to `size` bytes, the size of its disk, as far as whole blocks of it fit. One that
    /// has this size already stays as it is.
    ///
    /// # Errors
    /// Why it does not grow, for the caller.
    pub fn grow(&self, size: u64) -> Result<(), String> {
        let result = match self.kind {
            Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => self.grow_ext4(size),
            Kind::Xfs => self.grow_xfs(size),
            Kind::Btrfs => self.grow_btrfs(),
            Kind::Vfat | Kind::Erofs | Kind::Squashfs => {
                return Err(format!("{} cannot grow while it is mounted", self.kind));
            }
        };
        result.map_err(|errno| match errno {
            Errno::EROFS => format!("the {} is read-only", self.kind),
            Errno::EOPNOTSUPP | Errno::ENOTTY => {
                format!("this {} was made without what growing it needs: {errno}", self.kind)
            }
            Errno::EPERM => {
                format!("the agent may not grow the {}: it needs CAP_SYS_RESOURCE", self.kind)
            }
            other => format!("the guest's kernel does not grow the {}: {other}", self.kind),
        })
    }

    #[expect(unsafe_code, reason = "EXT4_IOC_RESIZE_FS has no safe wrapper in libc or nix")]
    fn grow_ext4(&self, size: u64) -> Result<(), Errno> {
        const EXT4_IOC_RESIZE_FS: u32 = 0x4008_6610;
        let found = nix::sys::statvfs::fstatvfs(&self.root)?;
        let blocks: u64 = size / found.fragment_size().max(1);
        let fd = self.root.as_raw_fd();
        // SAFETY: the kernel reads one number of 64 bits from `blocks`, which outlives the call.
        Errno::result(unsafe { libc::ioctl(fd, EXT4_IOC_RESIZE_FS as _, &raw const blocks) })
            .map(drop)
    }

    #[expect(unsafe_code, reason = "ioctls of XFS have no safe wrappers in libc or nix")]
    fn grow_xfs(&self, size: u64) -> Result<(), Errno> {
        const XFS_IOC_FSGEOMETRY_V1: u32 = 0x8070_5864;
        const XFS_IOC_FSGROWFSDATA: u32 = 0x4010_586e;
        let (fd, mut geometry) = (self.root.as_raw_fd(), XfsGeometry::default());
        // SAFETY: the kernel writes one `xfs_fsop_geom_v1`, whose size `XfsGeometry` has, to
        // `geometry`, which outlives the call.
        let result = unsafe { libc::ioctl(fd, XFS_IOC_FSGEOMETRY_V1 as _, &raw mut geometry) };
        Errno::result(result)?;
        let blocks = size / u64::from(geometry.block_size.max(1));
        let grow = XfsGrow { blocks, inode_percent: geometry.inode_percent, padding: 0 };
        // SAFETY: the kernel reads one `xfs_growfs_data` from `grow`, which outlives the call.
        Errno::result(unsafe { libc::ioctl(fd, XFS_IOC_FSGROWFSDATA as _, &raw const grow) })
            .map(drop)
    }

    #[expect(unsafe_code, reason = "BTRFS_IOC_RESIZE has no safe wrapper in libc or nix")]
    fn grow_btrfs(&self) -> Result<(), Errno> {
        const BTRFS_IOC_RESIZE: u32 = 0x5000_9403;
        let mut arguments = BtrfsArguments { fd: 0, name: [0; 4088] };
        arguments.name[..3].copy_from_slice(b"max");
        let fd = self.root.as_raw_fd();
        // SAFETY: the kernel reads one `btrfs_ioctl_vol_args` from `arguments`, which outlives the
        // call; its name ends with a zero byte.
        Errno::result(unsafe { libc::ioctl(fd, BTRFS_IOC_RESIZE as _, &raw const arguments) })
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rstest::rstest;

    use super::*;

    fn grown(kind: Kind) -> Result<(), String> {
        // No ioctl of these drivers: proc has none of them.
        Superblock { root: File::open("/proc").unwrap().into(), kind }.grow(1 << 40)
    }

    #[rstest]
    fn a_file_system_that_cannot_grow_is_named(
        #[values(Kind::Vfat, Kind::Erofs, Kind::Squashfs)] kind: Kind,
    ) {
        assert_eq!(grown(kind), Err(format!("{kind} cannot grow while it is mounted")));
    }

    #[rstest]
    fn a_driver_without_the_ioctl_is_named_with_the_error(
        #[values(Kind::Ext2, Kind::Ext4, Kind::Xfs, Kind::Btrfs)] kind: Kind,
    ) {
        let why = grown(kind).unwrap_err();
        assert!(why.starts_with(&format!("this {kind} was made without")), "{why}");
        assert!(why.contains("ENOTTY"), "{why}");
    }
}
