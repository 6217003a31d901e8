//! Opens a node by descriptor: [open(2)](https://man7.org/linux/man-pages/man2/open.2.html) of
//! `/proc/self/fd/N`.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{errno::Errno, fcntl::OFlag};

use super::location::Location;
use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    named,
};

/// Opens the node behind `handle`. `false`: the disk is not ready yet (ENXIO).
pub(super) fn open_device(
    handle: &OwnedFd,
    number: DeviceNumber,
    location: &Location,
) -> Result<bool> {
    // Through the agent's own /proc: this must not run inside the container's namespace.
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match named::open(&path, flags) {
        Ok(_) => Ok(true),
        Err(Errno::ENXIO) => Ok(false),
        Err(Errno::EACCES) => {
            Err(Unsupported::NoDev { path: location.path().as_str().to_owned() }.into())
        }
        Err(errno) => Err(Error::system("open", &format_args!("device {number}"))(errno)),
    }
}
