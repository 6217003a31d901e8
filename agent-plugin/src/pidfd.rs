//! A process by descriptor, which no later process can take over:
//! [pidfd_open(2)](https://man7.org/linux/man-pages/man2/pidfd_open.2.html).

use std::os::fd::{AsFd, FromRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// A descriptor of the process `pid`.
#[expect(unsafe_code, reason = "pidfd_open(2) has no safe wrapper in libc or nix")]
pub(crate) fn open(pid: libc::pid_t) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes two numbers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the process of a pidfd has ended.
pub(crate) fn has_ended(pidfd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::ZERO) {
            // A signal is pending: that says nothing of the process.
            Err(Errno::EINTR) => {}
            // A descriptor that cannot be polled is not the pidfd of a living process either.
            polled => break polled != Ok(0),
        }
    }
}
