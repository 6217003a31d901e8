//! The inode at a name: [statx(2)](https://man7.org/linux/man-pages/man2/statx.2.html) with
//! `AT_STATX_DONT_SYNC`, which does not wait for a file system's server, or with
//! `AT_STATX_FORCE_SYNC`, which does.
//!
//! A container may mount a file system that it provides itself (FUSE) at any name that is
//! inspected, and such a file system may never answer. A last component that is a link is not
//! followed.

use std::{
    ffi::CStr,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _},
};

use nix::{errno::Errno, sys::stat::SFlag};

use crate::{block::DeviceNumber, named::c_name};

/// What the kernel knows of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode {
    /// Its file type.
    pub(crate) kind: SFlag,
    /// Its permission bits.
    pub(crate) permissions: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) number: u64,
    pub(crate) size: u64,
    pub(crate) links: u32,
    /// The device number of its file system.
    pub(crate) file_system: DeviceNumber,
    /// The device number of a device node.
    pub(crate) device: DeviceNumber,
    /// Whether it is the root of a mount: something is mounted at this name.
    pub(crate) is_mounted: bool,
    /// The id of the mount that it was reached through, as in mountinfo (Linux 5.8).
    pub(crate) mount: u64,
}

impl Inode {
    /// The inode at `name` in `directory`. `None`: there is none.
    pub(crate) fn at(directory: &impl AsFd, name: &str) -> Result<Option<Inode>, Errno> {
        let name = c_name(name.as_bytes())?;
        let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_DONT_SYNC;
        match statx(directory.as_fd().as_raw_fd(), &name, flags) {
            Err(Errno::ENOENT) => Ok(None),
            result => result.map(Some),
        }
    }

    /// The inode at `name` in `directory`, from the file system's server, which may take long: this
    /// kernel caches for a while a file that the server has removed.
    pub(crate) fn synced_at(directory: &impl AsFd, name: &str) -> Result<Option<Inode>, Errno> {
        let name = c_name(name.as_bytes())?;
        let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_FORCE_SYNC;
        match statx(directory.as_fd().as_raw_fd(), &name, flags) {
            Err(Errno::ENOENT | Errno::ESTALE) => Ok(None),
            // The file was removed; the name may belong to another one.
            Ok(inode) if inode.links == 0 => Ok(None),
            result => result.map(Some),
        }
    }

    /// The inode of an open file.
    pub(crate) fn of(file: &impl AsFd) -> Result<Inode, Errno> {
        statx(file.as_fd().as_raw_fd(), c"", libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC)
    }

    /// The inode behind a path that is safe to follow, such as `/proc/PID/fd/N`.
    pub(crate) fn followed(path: &CStr) -> Result<Inode, Errno> {
        statx(libc::AT_FDCWD, path, libc::AT_STATX_DONT_SYNC)
    }
}

#[expect(unsafe_code, reason = "statx(2) has no safe wrapper in libc or nix")]
#[inline(never)]
fn statx(directory: i32, path: &CStr, flags: i32) -> Result<Inode, Errno> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let flags = flags | libc::AT_NO_AUTOMOUNT;
    let wanted = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    // SAFETY: `path` ends with a NUL byte and the kernel writes one `statx` to `found`; both
    // outlive the call.
    let result =
        unsafe { libc::statx(directory, path.as_ptr(), flags, wanted, found.as_mut_ptr()) };
    Errno::result(result)?;
    // SAFETY: all its fields are numbers, for which zero bytes are a value.
    let found = unsafe { found.assume_init() };
    let mode = u32::from(found.stx_mode);
    Ok(Inode {
        kind: SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()),
        permissions: mode & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        number: found.stx_ino,
        size: found.stx_size,
        links: found.stx_nlink,
        file_system: DeviceNumber { major: found.stx_dev_major, minor: found.stx_dev_minor },
        device: DeviceNumber { major: found.stx_rdev_major, minor: found.stx_rdev_minor },
        is_mounted: found.stx_attributes & libc::STATX_ATTR_MOUNT_ROOT as u64 != 0,
        mount: found.stx_mnt_id,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_link_is_not_followed_and_a_missing_name_is_none() {
        let directory = tempfile::tempdir().unwrap();
        symlink("/", directory.path().join("link")).unwrap();
        let open = File::open(directory.path()).unwrap();
        assert_eq!(Inode::at(&open, "link").unwrap().unwrap().kind, SFlag::S_IFLNK);
        assert_eq!(Inode::at(&open, "none").unwrap(), None);
        assert_eq!(Inode::at(&open, "a\0b").unwrap_err(), Errno::EINVAL);
        let of_it = Inode::of(&open).unwrap();
        assert!(of_it.kind == SFlag::S_IFDIR && !of_it.is_mounted, "{of_it:?}");
    }

    #[test]
    fn the_root_of_a_mount_is_recognized() {
        assert!(Inode::followed(c"/proc").unwrap().is_mounted);
        assert!(!Inode::followed(c"/proc/self/").unwrap().is_mounted);
        assert_eq!(
            Inode::followed(c"/dev/null").unwrap().device,
            DeviceNumber { major: 1, minor: 3 }
        );
    }
}
