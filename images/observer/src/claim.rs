//! A program that takes a disk for a moment, as those of multipath, md and LVM do at an event of
//! udev: `observer claim NODE FILE` opens it with `O_EXCL`
//! ([open(2)](https://man7.org/linux/man-pages/man2/open.2.html)), locks it
//! ([flock(2)](https://man7.org/linux/man-pages/man2/flock.2.html)), and keeps it until the file
//! exists.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path};

use nix::fcntl::{Flock, FlockArg};

use crate::hold::wait_for;

/// Claims and locks a disk until `release` exists. udev itself has locked it for reading while it
/// runs this program.
///
/// # Errors
/// Another process has claimed it, or has locked it for itself.
pub(crate) fn claim(node: &Path, release: &Path) -> io::Result<()> {
    let disk = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(node)?;
    let locked = Flock::lock(disk, FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno)?;
    wait_for(release);
    drop(locked);
    Ok(())
}
