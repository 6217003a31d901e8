//! Notices that another run wants the lock of a sandbox ([`lock`](super::lock)), by
//! [`inotify(7)`](https://man7.org/linux/man-pages/man7/inotify.7.html) on the directory that is
//! locked: whoever wants the lock opens it, and closes it when it has done its work.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::lock::{self, SandboxLock};
use crate::{Deadline, Error};

/// How long another run may take from opening the directory to waiting for the lock.
const LATE: Duration = Duration::from_secs(1);

/// A watch on the directory of a lock.
#[derive(Debug)]
pub(crate) struct LockWatch {
    directory: PathBuf,
    inotify: AsyncFd<Events>,
}

#[derive(Debug)]
struct Events(Inotify);

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl LockWatch {
    /// Watches `directory`, whose lock this run holds.
    ///
    /// # Errors
    /// It cannot be watched.
    pub(crate) fn new(directory: &Path) -> Result<Self, Error> {
        let failed = |call: &'static str| move |e: Errno| Error::system(call, directory, e.into());
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(failed("inotify_init1"))?;
        let events = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_CLOSE_NOWRITE;
        inotify.add_watch(directory, events).map_err(failed("inotify_add_watch"))?;
        // SAFETY: `Events` owns its descriptor, returns the same one each time, and closes it only
        // when it is dropped.
        #[expect(unsafe_code, reason = "the safe way is deprecated")]
        let inotify =
            unsafe { AsyncFd::register_with_interest(Events(inotify), Interest::READABLE) };
        let inotify = inotify.map_err(|e| Error::system("epoll_ctl", directory, e.into()))?;
        Ok(Self { directory: directory.to_owned(), inotify })
    }

    /// Awaits that another run wants the lock.
    pub(crate) async fn wanted(&self) {
        let opened = self.next(AddWatchFlags::IN_OPEN);
        let mut opened = std::pin::pin!(opened);
        // One that opened the directory before the watch began waits for the lock by now, or is
        // about to: it is looked for again, once.
        for late in [Duration::ZERO, LATE] {
            let opened = Deadline::after(late).wait(&mut opened).await;
            if matches!(opened, Ok(Ok(()))) || self.is_awaited().await {
                return;
            }
            if opened.is_ok() {
                // Without the watch nobody is noticed, and this run keeps the lock to its end.
                std::future::pending::<()>().await;
            }
        }
        if opened.await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Releases the lock, and awaits that another run has had it: otherwise this one could have it
    /// again first.
    pub(crate) async fn give_way(&self, lock: SandboxLock, deadline: Deadline) {
        let _ = self.drain();
        let mut is_awaited = self.is_awaited().await;
        // The directory stays open, so what is closed from now on was another run's.
        let Some(_directory) = lock.release() else { return };
        // Between its wait and its work, the other run neither waits for the lock nor holds it.
        while is_awaited || lock::holder(&self.directory, soon()).await.is_some() {
            let closed = deadline.wait(self.next(AddWatchFlags::IN_CLOSE_NOWRITE)).await;
            if !matches!(closed, Ok(Ok(()))) {
                return;
            }
            is_awaited = self.is_awaited().await;
        }
    }

    async fn is_awaited(&self) -> bool {
        lock::is_awaited(&self.directory, soon()).await
    }

    /// Awaits one of `events` of the directory itself.
    async fn next(&self, events: AddWatchFlags) -> std::io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match ready.get_inner().0.read_events() {
                // An event of a file in the directory has its name.
                Ok(found)
                    if found.iter().any(|e| e.name.is_none() && e.mask.intersects(events)) =>
                {
                    return Ok(());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Drops the events so far.
    fn drain(&self) -> Result<(), Errno> {
        loop {
            match self.inotify.get_ref().0.read_events() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// When a look at the present locks ends, however many there are.
fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_that_waits_for_the_lock_is_noticed_and_gets_its_turn_first() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock::acquire(directory.path(), soon()).await.unwrap();
        let watch = LockWatch::new(directory.path()).unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let nobody = Deadline::after(Duration::from_millis(50)).wait(watch.wanted()).await;
        assert!(nobody.is_err(), "a file in the directory is not the directory");

        let path = directory.path().to_owned();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let second = tokio::spawn(async move {
            let lock = lock::acquire(&path, soon()).await.unwrap();
            released.await.unwrap();
            drop(lock);
        });
        soon().wait(watch.wanted()).await.unwrap();
        while !lock::is_awaited(directory.path(), soon()).await {
            tokio::task::yield_now().await;
        }
        let mut turn = std::pin::pin!(watch.give_way(first, soon()));
        let early = Deadline::after(Duration::from_millis(50));
        early.wait(&mut turn).await.unwrap_err();
        release.send(()).unwrap();
        second.await.unwrap();
        soon().wait(turn).await.unwrap();
        lock::acquire(directory.path(), soon()).await.unwrap();
    }

    #[tokio::test]
    async fn a_run_that_waited_before_the_watch_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let _first = lock::acquire(directory.path(), soon()).await.unwrap();
        let path = directory.path().to_owned();
        tokio::spawn(async move { lock::acquire(&path, soon()).await });
        while !lock::is_awaited(directory.path(), soon()).await {
            tokio::task::yield_now().await;
        }
        let watch = LockWatch::new(directory.path()).unwrap();
        soon().wait(watch.wanted()).await.unwrap();
    }
}
