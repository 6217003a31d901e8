//! What a process inherits from its caller: a signal that must not end it, and the limit of open
//! files ([`getrlimit(2)`](https://man7.org/linux/man-pages/man2/getrlimit.2.html)).

use std::fs;

use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};

use crate::Error;

/// The limit that is needed at least.
const LEAST_LIMIT: u64 = 32;
/// How many descriptors must be free at least.
const LEAST_FREE: u64 = 16;

/// Prepares this process; called once, before it has threads.
///
/// # Errors
/// The kernel refuses it, which no known one does.
pub fn prepare() -> Result<(), Error> {
    // A soft limit is a default, for programs that use select(2). The kernel refuses a hard limit
    // above fs.nr_open; the soft one holds then.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    // At the limit of the size of a file (`ulimit -f`) the kernel sends SIGXFSZ, which ends the
    // process. With the signal blocked, the write fails with EFBIG, like on a full file system.
    SigSet::from(Signal::SIGXFSZ)
        .thread_block()
        .map_err(|errno| Error::system("sigprocmask", "", errno.into()))
}

/// Checks that enough descriptors can be opened for a command that opens few files.
///
/// # Errors
/// They are too few. Nothing was opened then.
pub(crate) fn check_descriptors() -> Result<(), Error> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|errno| Error::system("getrlimit", "", errno.into()))?;
    // If all are in use, the directory cannot be opened. While it is read, it is one of them.
    let open = match fs::read_dir("/proc/self/fd") {
        Ok(entries) => (entries.count() as u64).saturating_sub(1),
        Err(e) if e.raw_os_error() == Some(libc::EMFILE) => limit,
        Err(_) => 0,
    };
    if limit < LEAST_LIMIT || limit.saturating_sub(open) < LEAST_FREE {
        return Err(Error::DescriptorLimit { limit, open });
    }
    Ok(())
}
