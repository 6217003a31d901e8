//! A container in a request, and threads inside its mount namespace.

use std::{os::fd::AsRawFd as _, sync::Arc};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
};

use super::{
    root::Root,
    task::{NamespaceTask, check_abandoned, check_awaited},
};
use crate::{
    agent::Container,
    error::{BoxedError, Error, Result},
    fault, kernel_file, pidfd,
    procfs::{fdinfo, stat},
    text::displayed,
};

/// A container in a request, with its id.
#[derive(Debug, Clone)]
pub struct Target {
    /// The agent's id of the container.
    pub id: Arc<str>,
    /// The agent's handles.
    pub container: Arc<Container>,
}

impl Target {
    /// Whether the container's first process has ended.
    pub fn has_ended(&self) -> bool {
        pidfd::has_ended(&self.container.init)
    }

    /// # Errors
    /// [`Error::ContainerEnded`].
    pub fn check_alive(&self) -> Result<()> {
        if self.has_ended() { Err(self.ended()) } else { Ok(()) }
    }

    fn ended(&self) -> BoxedError {
        BoxedError::from(Error::ContainerEnded { id: displayed(&self.id) })
    }

    /// The pid of the first process, which is valid only if the process has not ended afterwards.
    pub(super) fn pid(&self) -> Result<i32> {
        let info = format!("/proc/self/fdinfo/{}", self.container.init.as_raw_fd());
        let text = kernel_file::read(&info).map_err(Error::system("read", &info.as_str()))?;
        fdinfo::pid(&text).ok_or_else(|| self.ended())
    }

    /// Reads a file of the first process below `/proc/PID`. Names in it are bytes.
    ///
    /// # Errors
    /// [`Error::ContainerEnded`], or `/proc` cannot be read.
    pub fn proc(&self, file: &str) -> Result<Vec<u8>> {
        let path = format!("/proc/{}/{file}", self.pid()?);
        let text = kernel_file::read(&path);
        self.check_alive()?;
        text.map_err(Error::system("read", &path))
    }

    /// When the container's first process began, in clock ticks since boot: it distinguishes a
    /// container from a later one of the same id.
    ///
    /// # Errors
    /// As [`proc`](Self::proc).
    pub fn started(&self) -> Result<u64> {
        stat::start_time(&self.proc("stat")?)
            .ok_or_else(|| Error::system("read", &"starttime")(Errno::EINVAL))
    }

    /// Runs `work` on a new thread inside the container's mount namespace. The thread ends with it.
    /// The container may have ended.
    ///
    /// # Errors
    /// The container's root cannot be found, no thread can be started, or too many of this
    /// container do not return.
    pub fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T> + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        self.enter_with(|| Ok(()), |root, ()| work(root))
    }

    /// As [`enter`](Self::enter). If the task was abandoned by then, `undo` gets the result of
    /// `work`, in there.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn enter_with_undo<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T> + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        let (root, target) = (self.root_to_enter()?, self.clone());
        let enter_and_work = move || {
            target.enter_tree()?;
            work(&root)
        };
        NamespaceTask::start_with_undo(&self.id, enter_and_work, undo)
    }

    /// Runs `before` on a new thread, and then `work` inside the container's mount namespace.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn enter_with<P, T: Send + 'static>(
        &self,
        before: impl FnOnce() -> Result<P> + Send + 'static,
        work: impl FnOnce(&Root, P) -> Result<T> + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        let (root, target) = (self.root_to_enter()?, self.clone());
        let enter_and_work = move || {
            let prepared = before()?;
            target.enter_tree()?;
            work(&root, prepared)
        };
        NamespaceTask::start(&self.id, enter_and_work)
    }

    /// The container's root, unless too many of its threads do not return.
    fn root_to_enter(&self) -> Result<Root> {
        check_abandoned(&self.id)?;
        self.root()
    }

    fn enter_tree(&self) -> Result<()> {
        // The file of the fault points is the guest's.
        fault::at("tree");
        self.enter_here()?;
        check_awaited()
    }

    /// Runs `work` on a new thread inside the container's mount namespace, for work that uses
    /// descriptors alone. The container may have ended: its namespace and its mounts exist as long
    /// as our handle.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn enter_even_ended<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        let target = self.clone();
        let enter_and_work = move || {
            target.enter_here()?;
            check_awaited()?;
            work()
        };
        NamespaceTask::start(&self.id, enter_and_work)
    }

    /// Runs `work` on a new thread that stays outside, for work that changes the thread itself for
    /// good.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        NamespaceTask::start(&self.id, work)
    }

    /// Moves the calling thread into the namespace, for good: the thread must end soon.
    pub(super) fn enter_here(&self) -> Result<()> {
        // A thread shares its root and working directory with the whole process otherwise, and
        // setns would refuse (EINVAL).
        unshare(CloneFlags::CLONE_FS).map_err(Error::system("unshare", &"CLONE_FS"))?;
        if fault::skips("namespace") {
            return Ok(());
        }
        setns(&self.container.mount_namespace, CloneFlags::CLONE_NEWNS).map_err(Error::system(
            "setns",
            &format_args!("the mount namespace of container {}", self.id),
        ))
    }
}
