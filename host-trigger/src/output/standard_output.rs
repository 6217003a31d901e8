//! Standard output, by [`write(2)`](https://man7.org/linux/man-pages/man2/write.2.html): nothing
//! is buffered, and no error is ignored but that of a reader which has closed its end.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Writes `text`. A reader that closes its end early has what it wanted.
///
/// # Errors
/// Not everything could be written, for example because a file system is full.
pub(super) fn write(text: &[u8]) -> io::Result<()> {
    match write_all(io::stdout().as_fd(), text) {
        Ok(()) | Err(Errno::EPIPE) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn write_all(fd: BorrowedFd<'_>, mut text: &[u8]) -> Result<(), Errno> {
    while !text.is_empty() {
        match nix::unistd::write(fd, text) {
            Ok(written) => text = text.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            // Another program has set the pipe or terminal to be non-blocking.
            Err(Errno::EAGAIN) => {
                match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
