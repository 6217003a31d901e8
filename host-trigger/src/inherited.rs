//! What a process inherits from its caller and must not be surprised by.

use nix::sys::signal::{SigSet, Signal};

use crate::Error;

/// Prepares this process; called once, before it has threads.
///
/// # Errors
/// The kernel refuses it, which no known one does.
pub(crate) fn prepare() -> Result<(), Error> {
    // At the limit of the size of a file (`ulimit -f`) the kernel sends SIGXFSZ, which ends the
    // process. With the signal blocked, the write fails with EFBIG, like on a full file system.
    SigSet::from(Signal::SIGXFSZ)
        .thread_block()
        .map_err(|errno| Error::system("sigprocmask", "", errno.into()))
}
