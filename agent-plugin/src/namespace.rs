//! The container's view of the file system: its root directory, and its mount namespace
//! ([mount_namespaces(7)](https://man7.org/linux/man-pages/man7/mount_namespaces.7.html),
//! [setns(2)](https://man7.org/linux/man-pages/man2/setns.2.html),
//! [openat2(2)](https://man7.org/linux/man-pages/man2/openat2.2.html)).
//!
//! The container's tree is hostile. Its links are followed inside its root only, and a file system
//! of its own making (FUSE) may never answer: so paths are resolved on a thread of its own, which
//! is left behind when it does not come back in time. What such a thread changes after all, it
//! takes back.

use std::{
    fs,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sched::{CloneFlags, setns, unshare},
    sys::stat::Mode,
};

use crate::{
    agent::Container,
    error::{Error, Result, Unsupported},
    fault,
    handles::has_ended,
};

/// A container in a request, with its id.
#[derive(Debug, Clone)]
pub struct Target {
    /// As the agent knows it.
    pub id: Arc<str>,
    /// The agent's handles.
    pub container: Arc<Container>,
}

impl Target {
    /// Whether the container's first process has ended.
    pub fn has_ended(&self) -> bool {
        has_ended(&self.container.init)
    }

    /// # Errors
    /// [`Error::ContainerEnded`].
    pub fn check_alive(&self) -> Result<()> {
        if self.has_ended() {
            Err(Error::ContainerEnded { id: self.id.to_string() })
        } else {
            Ok(())
        }
    }

    /// Where it is in `/proc` now, which counts only as long as it has not ended.
    fn pid(&self) -> Result<i32> {
        let info = format!("/proc/self/fdinfo/{}", self.container.init.as_raw_fd());
        let text = fs::read_to_string(&info).map_err(Error::system("read", info.as_str()))?;
        let pid =
            text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
        // -1: reaped; 0: not visible from here.
        pid.filter(|&pid| pid > 0).ok_or_else(|| Error::ContainerEnded { id: self.id.to_string() })
    }

    /// A file of the first process below `/proc/PID`.
    ///
    /// # Errors
    /// [`Error::ContainerEnded`], or `/proc` does not answer.
    pub fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.pid()?);
        let text = fs::read_to_string(&path);
        self.check_alive()?;
        text.map_err(Error::system("read", path))
    }

    /// The root directory of the container's first process, safe against a reuse of its pid.
    ///
    /// # Errors
    /// [`Error::ContainerEnded`], or `/proc` does not answer.
    pub fn root(&self) -> Result<Root> {
        let pid = self.pid()?;
        let path =
            if fault::skips("namespace") { "/".to_owned() } else { format!("/proc/{pid}/root") };
        let opened = open(
            path.as_str(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        // Only now does the pid count: had it been given to another process before the open, ours
        // would have ended.
        self.check_alive()?;
        Ok(Root { directory: opened.map_err(Error::system("open", path))? })
    }

    /// When the container's first process began, in clock ticks since boot (the 22nd field of
    /// [`/proc/PID/stat`](https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html)): it tells a
    /// container from a later one of the same id.
    ///
    /// # Errors
    /// As [`root`](Self::root).
    pub fn started(&self) -> Result<u64> {
        started(&self.proc("stat")?)
            .ok_or_else(|| Error::system("read", "starttime")(Errno::EINVAL))
    }

    /// Runs `work` on a new thread inside the container's mount namespace. The thread ends with it.
    ///
    /// # Errors
    /// The container has ended, or there is no thread to be had.
    pub fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<Visit<T>> {
        self.enter_with(|| Ok(()), |root, ()| work(root), drop)
    }

    /// The same, with something that is done on that thread `before` it enters; `abandoned` gets,
    /// in there, the result of work for which nobody waits any more.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn enter_with<P, T: Send + 'static>(
        &self,
        before: impl FnOnce() -> Result<P> + Send + 'static,
        work: impl FnOnce(&Root, P) -> Result<T> + Send + 'static,
        abandoned: impl FnOnce(T) + Send + 'static,
    ) -> Result<Visit<T>> {
        let root = self.root()?;
        let target = self.clone();
        let enter_and_work = move || {
            let prepared = before()?;
            target.enter_here()?;
            work(&root, prepared)
        };
        Visit::start(&self.id, enter_and_work, abandoned)
    }

    /// Runs `work` on a new thread inside the container's mount namespace, for what goes by
    /// descriptors alone. The container may have ended: its namespace and its mounts are there for
    /// as long as our handle.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn enter_even_ended<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Visit<T>> {
        let target = self.clone();
        let enter_and_work = move || {
            target.enter_here()?;
            work()
        };
        Visit::start(&self.id, enter_and_work, drop)
    }

    /// Runs `work` on a new thread that stays outside, for what a thread cannot do without a change
    /// that sticks to it.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Visit<T>> {
        Visit::start(&self.id, work, drop)
    }

    /// For a thread that ends right after: it cannot come back.
    fn enter_here(&self) -> Result<()> {
        // A thread shares its root and working directory with the whole process otherwise, and
        // setns would refuse (EINVAL).
        unshare(CloneFlags::CLONE_FS).map_err(Error::system("unshare", "CLONE_FS"))?;
        if fault::skips("namespace") {
            return Ok(());
        }
        setns(&self.container.mount_namespace, CloneFlags::CLONE_NEWNS).map_err(Error::system(
            "setns",
            format!("the mount namespace of container {}", self.id),
        ))
    }
}

/// A closure that runs on a thread of its own, mostly inside a container's mount namespace.
#[derive(Debug)]
pub struct Visit<T> {
    result: mpsc::Receiver<Result<T>>,
    thread: thread::JoinHandle<()>,
    /// Set by whoever comes first: the thread when it is done, or the one who waits when it gives
    /// up.
    decided: Arc<AtomicBool>,
    id: Arc<str>,
}

impl<T: Send + 'static> Visit<T> {
    fn start(
        id: &Arc<str>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        abandoned: impl FnOnce(T) + Send + 'static,
    ) -> Result<Visit<T>> {
        let (sender, result) = mpsc::sync_channel(1);
        let decided = Arc::new(AtomicBool::new(false));
        let mine = decided.clone();
        let run = move || {
            let done = work();
            if mine.swap(true, Ordering::AcqRel) {
                // Given up; an error has changed nothing.
                let _ = done.map(abandoned);
            } else {
                // Where the visit was dropped without a wait, nothing came of its request.
                let _ = sender.send(done);
            }
        };
        let thread = thread::Builder::new()
            .name("block-volume-ns".to_owned())
            .spawn(run)
            .map_err(Error::system("clone", "a thread"))?;
        Ok(Visit { result, thread, decided, id: id.clone() })
    }

    /// Its result. A thread that is not back by the deadline is left behind.
    ///
    /// # Errors
    /// What the closure returned, or [`Error::TimedOut`].
    pub fn finish(self, deadline: Instant) -> Result<T> {
        // A grace that any live file system meets: a deadline that has passed must not leave a
        // thread that is just done.
        let patience =
            deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        let result = match self.result.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) if !self.decided.swap(true, Ordering::AcqRel) => {
                return Err(Error::TimedOut {
                    awaited: format!("a file system of container {}", self.id),
                });
            }
            // Done after all, in the last moment.
            Err(RecvTimeoutError::Timeout) => self.result.recv().map_err(|_| Error::Panicked)?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Panicked),
            Ok(result) => result,
        };
        // It has nothing left to do but to end: whoever gets the result finds no thread of ours in
        // there any more.
        self.thread.join().map_err(|_| Error::Panicked)?;
        result
    }
}

/// A container's root directory.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// The directory at `path`, as a process of the container would find it: links lead to places
    /// below this root.
    ///
    /// # Errors
    /// [`Error::ParentMissing`], or a link of `/proc` that leads out ([`Unsupported::MagicLink`]).
    pub fn directory(&self, path: &str) -> Result<OwnedFd> {
        let missing = || Error::ParentMissing { path: path.to_owned() };
        self.existing(path)?.ok_or_else(missing)
    }

    /// The same; `None` where a component of the path does not exist. A component that is no
    /// directory is an error.
    ///
    /// # Errors
    /// As [`directory`](Self::directory).
    pub fn existing(&self, path: &str) -> Result<Option<OwnedFd>> {
        /// The kernel answers EAGAIN while something is renamed during a walk over `..`: a hostile
        /// container may do so on and on.
        const TRIES: usize = 64;

        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut result = Err(Errno::EAGAIN);
        for _ in 0..TRIES {
            result = openat2(&self.directory, path, how);
            if !matches!(result, Err(Errno::EAGAIN)) {
                break;
            }
        }
        match result {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR) => Err(Error::ParentMissing { path: path.to_owned() }),
            Err(Errno::ELOOP | Errno::EXDEV) => {
                Err(Unsupported::MagicLink { path: path.to_owned() }.into())
            }
            Err(Errno::ENOSYS) => Err(Unsupported::Kernel { call: "openat2", since: "5.6" }.into()),
            Err(other) => Err(Error::system("openat2", path)(other)),
        }
    }
}

/// The field `starttime`. The second one, the command's name, may hold anything, parentheses and
/// blanks included.
fn started(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_read_whatever_the_name_is() {
        let stat = "7 (a) 1 (b c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 4096 1\n";
        assert_eq!(started(stat), Some(123_456));
        assert_eq!(started("7 (a) S 1"), None);
        assert_eq!(started(""), None);
    }
}
