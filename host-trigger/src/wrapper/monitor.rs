//! The socket of the second monitor, bound before QEMU starts and passed to it by its descriptor.
//!
//! QEMU itself could make it by its path, with three drawbacks: an address holds 107 bytes of path
//! ([`unix(7)`](https://man7.org/linux/man-pages/man7/unix.7.html)), the mode depends on the umask,
//! and QEMU ends if it fails.

use std::{
    fmt, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd},
        unix::{fs::FileTypeExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
        stat::{Mode, umask},
    },
};

/// The name of the socket; the Go runtime has one of this name in debug mode.
pub(super) const SOCKET: &str = "extra-monitor.sock";
/// The longest path in an address.
const MAX_PATH_LENGTH: usize = 107;
/// Numbers below are left to the runtime: it passes 3 to 6 (Go) or 16 to 20 (Rust).
const FIRST_DESCRIPTOR: RawFd = 64;
/// Only the owner may connect.
const OTHERS: Mode = Mode::S_IRWXG.union(Mode::S_IRWXO).union(Mode::S_IXUSR);

/// A socket without a server yet. Its descriptors are inherited by the next program.
#[derive(Debug)]
pub(super) struct Monitor {
    descriptor: RawFd,
    address: PathBuf,
}

/// Why there is no second monitor. QEMU starts without one.
#[derive(Debug)]
pub(super) struct NoMonitor {
    sandbox: String,
    what: String,
    source: Option<io::Error>,
}

impl NoMonitor {
    /// QEMU makes something at the socket's path that is no QMP monitor.
    pub(super) fn path_is_taken(sandbox: String) -> Self {
        let what = format!(
            "QEMU has another use for {SOCKET}: remove extra_monitor_socket from Kata's configuration"
        );
        Self { sandbox, what, source: None }
    }
}

impl fmt::Display for NoMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sandbox {}: {}", self.sandbox, self.what)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, ": {source}"))
    }
}

impl Monitor {
    /// Listens in the first of `directories` that exists.
    ///
    /// # Errors
    /// None of them exists, or the socket cannot be made, or another process serves it.
    pub(super) fn listen(sandbox: &str, directories: &[PathBuf]) -> Result<Self, NoMonitor> {
        let none = |what: String, source| NoMonitor { sandbox: sandbox.to_owned(), what, source };
        // The link of a VM of the factory is followed.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut failed = Vec::new();
        for path in directories {
            match open(path, flags, Mode::empty()) {
                Ok(directory) => {
                    let what = || format!("cannot listen on {:?}", path.join(SOCKET));
                    return listen_in(directory).map_err(|e| none(what(), Some(e)));
                }
                Err(errno) => failed.push(format!("cannot open {path:?}: {errno}")),
            }
        }
        Err(none(failed.join("; "), None))
    }

    /// QEMU's arguments for it.
    pub(super) fn arguments(&self, id: &str) -> [String; 4] {
        [
            "-chardev".to_owned(),
            format!("socket,id={id},fd={},server=on,wait=off", self.descriptor),
            "-mon".to_owned(),
            format!("chardev={id},mode=control"),
        ]
    }

    /// Removes the socket: QEMU does not start.
    pub(super) fn remove(self) {
        // On failure Kata removes it with the directory.
        let _ = std::fs::remove_file(self.address);
    }
}

fn listen_in(directory: OwnedFd) -> io::Result<Monitor> {
    let descriptor = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
    // QEMU removes the file by this address when it ends. It is the one that the table of sockets
    // shows, too.
    let named = std::fs::read_link(&descriptor)?.join(SOCKET);
    if named.as_os_str().len() <= MAX_PATH_LENGTH {
        return listen_on(named);
    }
    // The address stays valid in QEMU, which inherits the directory's descriptor.
    let inherited = inherited(directory)?;
    let address = Path::new("/proc/self/fd").join(inherited.to_string()).join(SOCKET);
    // QEMU starts with what it was passed alone.
    listen_on(address).inspect_err(|_| {
        let _ = nix::unistd::close(inherited);
    })
}

fn listen_on(address: PathBuf) -> io::Result<Monitor> {
    let listener = match bind(&address) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(&address)?;
            bind(&address)?
        }
        bound => bound?,
    };
    match inherited(OwnedFd::from(listener)) {
        Ok(descriptor) => Ok(Monitor { descriptor, address }),
        Err(e) => {
            let _ = std::fs::remove_file(&address);
            Err(e)
        }
    }
}

/// Binds with the mode 0600 from the start: this process has no other thread.
fn bind(address: &Path) -> io::Result<UnixListener> {
    let before = umask(OTHERS);
    let bound = UnixListener::bind(address);
    umask(before);
    bound
}

/// Removes the socket of a process that has ended.
fn remove_stale(address: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(address)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket"));
    }
    let probe = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(address)?) {
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(address),
        // Its queue may be full: EAGAIN.
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it")),
    }
}

/// Duplicates a descriptor to a number that is not open and that no runtime uses. The next program
/// inherits it.
fn inherited(descriptor: OwnedFd) -> io::Result<RawFd> {
    // Nothing closes it here: this process becomes QEMU or ends.
    Ok(fcntl(descriptor.as_fd(), FcntlArg::F_DUPFD(FIRST_DESCRIPTOR))?)
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
