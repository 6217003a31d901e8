//! What the mount namespace that the agent pinned shows, wherever the container's first process is
//! now ([setns(2)](https://man7.org/linux/man-pages/man2/setns.2.html),
//! [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)).
//!
//! A container may enter another namespace by itself (`unshare(2)`): then `/proc/PID` shows what it
//! has made there, and not where the plugin's nodes are. And a container that has ended has no
//! `/proc/PID`, but its namespace exists as long as our handle.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use nix::{fcntl::OFlag, sys::stat::fstat};

use super::{root::Root, target::Target};
use crate::{
    agent::ContainerError,
    error::{BoxedError, Error, Result},
    fault,
    inode::Inode,
    kernel_file, named,
    procfs::mountinfo::MountLine,
    text::displayed,
    thread::Thread,
    worker::Worker,
};

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Target {
    /// Checks that the container's first process runs, and is in the pinned namespace: elsewhere it
    /// would not see a volume that is attached there.
    ///
    /// # Errors
    /// It has ended, or left the namespace.
    pub fn check_inside(&self) -> Result<()> {
        let inside = self.pid().is_ok_and(|pid| self.is_inside(pid));
        self.check_alive()?;
        if inside || fault::skips("namespace") {
            return Ok(());
        }
        let reason = "its first process is not in the container's mount namespace: it left it, or \
                      has ended and its pid was reused";
        Err(self.unreachable(reason))
    }

    /// Opens the container's root directory: that of its first process while it is in the pinned
    /// namespace, else that of the namespace itself.
    ///
    /// # Errors
    /// The first process has ended, or left the namespace, in which it had merely changed its root
    /// directory.
    pub fn root(&self) -> Result<Root> {
        if fault::skips("namespace") {
            return named::open("/", DIRECTORY).map(Root::new).map_err(Error::system("open", &"/"));
        }
        match self.root_of_process() {
            Some(root) => Ok(root),
            None => self.root_of_namespace(),
        }
    }

    /// `None`: the process has left the namespace, or has ended.
    fn root_of_process(&self) -> Option<Root> {
        let pid = self.pid().ok()?;
        if !self.is_inside(pid) {
            return None;
        }
        let root = named::open(&format!("/proc/{pid}/root"), DIRECTORY).ok()?;
        // If the pid had been reused before the open, our process would have ended.
        (self.is_inside(pid) && !self.has_ended()).then(|| Root::new(root))
    }

    fn root_of_namespace(&self) -> Result<Root> {
        let root: OwnedFd = self
            .inside(|| named::open("/", DIRECTORY).map_err(Error::system("open", &"the root")))?;
        let stat = |found: Result<Inode, _>| found.map_err(Error::system("statx", &"the root"));
        let (found, ours) = (stat(Inode::of(&root))?, stat(Inode::followed(c"/"))?);
        // A container that was started with chroot alone has the guest's tree around its own.
        if (found.file_system, found.number) == (ours.file_system, ours.number) {
            self.check_alive()?;
            let reason = "its first process is gone from its mount namespace, and the root \
                          directory there is the guest's own";
            return Err(self.unreachable(reason));
        }
        Ok(Root::new(root))
    }

    /// The mountinfo of the pinned namespace.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn mountinfo(&self) -> Result<Vec<u8>> {
        let proc = own_proc()?;
        self.inside(move || mountinfo_of_thread(&proc))
    }

    /// Whether the process is in the pinned namespace.
    fn is_inside(&self, pid: i32) -> bool {
        is_same(&format!("/proc/{pid}/ns/mnt"), &self.container.mount_namespace)
    }

    /// Whether a file of the first process below `/proc/PID` is the open `file`.
    ///
    /// # Errors
    /// [`Error::ContainerEnded`].
    pub(crate) fn proc_is(&self, path: &str, file: &OwnedFd) -> Result<bool> {
        let same = is_same(&format!("/proc/{}/{path}", self.pid()?), file);
        self.check_alive().map(|()| same)
    }

    /// Runs `work` on a thread inside the namespace, and waits for it: for work that never waits
    /// for a file system of the container.
    fn inside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let target = self.clone();
        let enter_and_work = move || {
            target.enter_here()?;
            work()
        };
        Worker::start(Thread::Namespace, enter_and_work)?.join()?
    }

    fn unreachable(&self, reason: &str) -> BoxedError {
        let source = ContainerError::Unreachable(reason.to_owned());
        BoxedError::from(Error::Container { id: displayed(&self.id), source })
    }
}

fn is_same(path: &str, file: &OwnedFd) -> bool {
    let (found, known) = (fs::metadata(path), fstat(file));
    found.is_ok_and(|found| {
        known.is_ok_and(|known| (known.st_dev, known.st_ino) == (found.dev(), found.ino()))
    })
}

/// Opens the agent's own `/proc`, for a thread that is to enter the namespace of a container, which
/// may have mounted something else there.
///
/// # Errors
/// There is none.
pub(crate) fn own_proc() -> Result<OwnedFd> {
    named::open("/proc", DIRECTORY).map_err(Error::system("open", &"/proc"))
}

/// The mounts that the calling thread reaches from its root directory. `proc` is the agent's own
/// `/proc`, which was opened before the thread entered another namespace.
///
/// # Errors
/// It cannot be read.
pub(crate) fn mountinfo_of_thread(proc: &impl AsFd) -> Result<Vec<u8>> {
    kernel_file::rest(open_mountinfo(proc)?).map_err(Error::system("read", &MOUNTINFO))
}

/// Passes the mounts of [`mountinfo_of_thread`] to `is_last`, up to the one for which that is true:
/// of hundreds of mounts, the kernel takes milliseconds to write the list.
///
/// # Errors
/// It cannot be read.
pub(crate) fn mounts_of_thread(
    proc: &impl AsFd,
    mut is_last: impl FnMut(MountLine<'_>) -> bool,
) -> Result<()> {
    let mut is_last = |line: &[u8]| MountLine::parse(line).is_some_and(&mut is_last);
    let read = kernel_file::lines_until(open_mountinfo(proc)?, &mut is_last);
    read.map_err(Error::system("read", &MOUNTINFO))
}

const MOUNTINFO: &str = "thread-self/mountinfo";

fn open_mountinfo(proc: &impl AsFd) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = named::openat(proc, MOUNTINFO, flags).map_err(Error::system("open", &MOUNTINFO))?;
    Ok(file.into())
}
