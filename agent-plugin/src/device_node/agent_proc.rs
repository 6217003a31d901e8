//! The agent's own `/proc`, for a thread that has left the agent's mount namespace: the container's
//! `/proc` may be anything. The descriptors are opened before.
//!
//! [umount(2)](https://man7.org/linux/man-pages/man2/umount.2.html) knows no descriptors. But
//! [`/proc/PID/fd/N`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html) leads to exactly the
//! mount that descriptor N is on, or, if others are mounted over it, to the last of those.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, umount2},
    unistd::fchdir,
};

use crate::{
    error::{Error, Result},
    named::{self, c_name},
    namespace::mountinfo_of_thread,
};

/// The agent's own `/proc`.
#[derive(Debug)]
pub(crate) struct AgentProc {
    root: OwnedFd,
    descriptors: OwnedFd,
}

impl AgentProc {
    /// Opens it. The thread must be in the agent's mount namespace.
    pub(crate) fn open() -> Result<AgentProc> {
        let directory = |path: &'static str| {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            named::open(path, flags).map_err(Error::system("open", &path))
        };
        Ok(AgentProc { root: directory("/proc")?, descriptors: directory("/proc/self/fd")? })
    }

    /// The mounts that the calling thread reaches from its root directory.
    pub(crate) fn mountinfo(&self) -> Result<Vec<u8>> {
        mountinfo_of_thread(&self.root)
    }

    /// Changes the thread's working directory, which must be its own, so that the path that is
    /// returned leads to exactly the file of `fd`.
    pub(super) fn path_of(&self, fd: &impl AsFd) -> Result<CString, Errno> {
        fchdir(&self.descriptors)?;
        c_name(fd.as_fd().as_raw_fd().to_string().as_bytes())
    }

    /// Unmounts the mount that `fd` is on, or the last one of those that are mounted over it.
    pub(crate) fn unmount(&self, fd: &impl AsFd) -> Result<(), Errno> {
        umount2(self.path_of(fd)?.as_c_str(), MntFlags::MNT_DETACH)
    }
}
