//! A superblock that is mounted: it is reached by one more mount of the same disk, which is
//! attached nowhere.
//!
//! [syncfs(2)](https://man7.org/linux/man-pages/man2/syncfs.2.html),
//! [ioctl_fs(2)](https://docs.kernel.org/filesystems/index.html) (`FS_IOC_SHUTDOWN`, which ext4,
//! xfs and f2fs have; it has the same number as XFS's `XFS_IOC_GOINGDOWN`).

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{errno::Errno, sys::stat::Mode, unistd::syncfs};

use super::{Source, context::Context, detached::opened, kind::Kind, space::Space};
use crate::{
    error::{Error, Result},
    private_dev,
};

/// A superblock that is mounted. It stays so for at least as long as this lives.
#[derive(Debug)]
pub struct Superblock {
    pub(super) root: OwnedFd,
    pub(super) kind: Kind,
}

impl Superblock {
    /// Reaches the superblock of a disk, which must be mounted: otherwise this mounts it. The
    /// calling thread must end soon: it leaves its mount namespace.
    ///
    /// # Errors
    /// The disk is held by something else than a mount of this type, or does not answer.
    pub fn reach(source: &Source, kind: Kind) -> Result<Superblock> {
        let Source { disk, number, node } = source;
        let path = private_dev::enter(node, node, *number, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let mount = |options: &[&str]| {
            let context = Context::open(kind.name())?;
            context.source(&path)?;
            options.iter().try_for_each(|option| context.option(option, None))?;
            context.create()?;
            let mount = context.mount(libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID)?;
            opened(&mount)
        };
        // The kernel shares a superblock only with whoever wants it read-only or not, as it is.
        let root = match mount(&[]) {
            Err(Errno::EBUSY | Errno::EACCES | Errno::EROFS) => mount(&["ro"]),
            result => result,
        };
        let root = root.map_err(Error::system("fsconfig", &disk.as_str()));
        private_dev::leave().map_err(Error::system("umount2", &"a tmpfs"))?;
        Ok(Superblock { root: root?, kind })
    }

    /// Writes back what is in memory of it.
    ///
    /// # Errors
    /// The disk refuses a write, or has refused an earlier one.
    pub fn write_back(&self) -> Result<()> {
        syncfs(&self.root).map_err(Error::system("syncfs", &self.kind))
    }

    /// How much it has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn space(&self) -> Result<Space> {
        Space::of(&self.root)
    }

    /// Makes it refuse everything from now on, after its log was written. `false`: a file system of
    /// this type cannot do that.
    ///
    /// # Errors
    /// The kernel refuses.
    #[expect(unsafe_code, reason = "FS_IOC_SHUTDOWN has no safe wrapper in libc or nix")]
    pub fn shut_down(&self) -> Result<bool> {
        const FS_IOC_SHUTDOWN: u32 = 0x8004_587d;
        const LOG_FLUSH: u32 = 1;
        let (fd, flags) = (self.root.as_raw_fd(), LOG_FLUSH);
        // SAFETY: the kernel reads one number of 32 bits from `flags`, which outlives the call.
        let result = unsafe { libc::ioctl(fd, FS_IOC_SHUTDOWN as _, &raw const flags) };
        match Errno::result(result) {
            Ok(_) => Ok(true),
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(false),
            // It was shut down before, by itself.
            Err(Errno::EIO | Errno::EROFS) => Ok(true),
            Err(errno) => Err(Error::system("ioctl(FS_IOC_SHUTDOWN)", &self.kind)(errno)),
        }
    }
}
