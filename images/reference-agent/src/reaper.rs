//! The single reaper of all the agent's children, by
//! [`waitpid(2)`](https://man7.org/linux/man-pages/man2/waitpid.2.html).
//!
//! The agent is PID 1 and a child subreaper: orphans of containers become its children, too. So
//! that no exit status is lost, no other code in this process waits for children, crun included;
//! code that starts a process gets its exit status here.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// An exit status, set once the process has ended: its exit code, or 128 plus the signal's number.
pub(crate) type Exit = watch::Receiver<Option<i32>>;

/// Reaps every child when SIGCHLD comes.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<u32, watch::Sender<Option<i32>>>,
    /// Exit statuses of processes that are not watched yet, kept while an expectation exists.
    early: HashMap<u32, i32>,
    expecting: usize,
}

/// While it exists, the exit status of every child is kept. Take it before you start a process,
/// then watch the process.
#[derive(Debug)]
pub(crate) struct Expectation {
    reaper: Arc<Reaper>,
}

impl Reaper {
    /// Starts to reap.
    ///
    /// # Errors
    /// SIGCHLD cannot be handled.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let mut signals = signal(SignalKind::child())?;
        let reaper = Arc::new(Self::default());
        let this = Arc::clone(&reaper);
        tokio::spawn(async move {
            // First without a signal: children of init may have ended before.
            loop {
                this.reap();
                if signals.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Call it before a child is started.
    pub(crate) fn expect(self: &Arc<Self>) -> Expectation {
        self.table().expecting += 1;
        Expectation { reaper: Arc::clone(self) }
    }

    /// Reaps all ended children: one signal may be for several.
    fn reap(&self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid.as_raw().unsigned_abs(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended(pid.as_raw().unsigned_abs(), 128 + signal as i32)
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => {
                    tracing::error!("waitpid: {errno}");
                    return;
                }
            }
        }
    }

    fn ended(&self, pid: u32, status: i32) {
        let mut table = self.table();
        if let Some(watcher) = table.watched.remove(&pid) {
            watcher.send_replace(Some(status));
        } else if table.expecting > 0 {
            table.early.insert(pid, status);
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // The table is consistent after every statement, so a poisoned lock is usable.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expectation {
    /// Returns the exit status of `pid`, even if it has ended already.
    pub(crate) fn watch(&self, pid: u32) -> Exit {
        let mut table = self.reaper.table();
        let status = table.early.remove(&pid);
        let (sender, receiver) = watch::channel(status);
        if status.is_none() {
            table.watched.insert(pid, sender);
        }
        receiver
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        table.expecting -= 1;
        if table.expecting == 0 {
            table.early.clear();
        }
    }
}

/// Waits for an exit status.
pub(crate) async fn ended(exit: &mut Exit) -> i32 {
    match exit.wait_for(Option::is_some).await {
        Ok(status) => status.unwrap_or_default(),
        // The reaper keeps the sender until it has sent.
        Err(_) => unreachable!("the reaper dropped a process that it watches"),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[expect(clippy::zombie_processes, reason = "waiting for them is what is tested")]
    /// One test, because a reaper reaps every child of its process: two tests would reap each
    /// other's.
    #[tokio::test]
    async fn every_child_is_reaped_and_its_status_goes_to_its_watcher() {
        let reaper = Reaper::start().unwrap();
        let shell = |script: &str| {
            let expectation = reaper.expect();
            let child =
                Command::new("sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
            (expectation, child.id())
        };

        {
            let (expectation, pid) = shell("exit 7");
            assert_eq!(ended(&mut expectation.watch(pid)).await, 7);
            let (expectation, pid) = shell("kill -9 $$");
            assert_eq!(ended(&mut expectation.watch(pid)).await, 137);

            // Watched after its end: the end of the second child shows that the first one has been
            // reaped.
            let (expectation, early) = shell("exit 3");
            let (_, pid) = shell(&format!("while kill -0 {early} 2>/dev/null; do :; done"));
            ended(&mut expectation.watch(pid)).await;
            assert_eq!(ended(&mut expectation.watch(early)).await, 3);
        }
        {
            // No expectation exists for this one: it is reaped and its status is dropped.
            let (expectation, orphan) = shell("exit 1");
            drop(expectation);
            let (expectation, pid) =
                shell(&format!("while kill -0 {orphan} 2>/dev/null; do :; done"));
            ended(&mut expectation.watch(pid)).await;
        }
        let table = reaper.table();
        assert!(table.early.is_empty() && table.watched.is_empty() && table.expecting == 0);
    }
}
