//! The one reaper of all the agent's children, by
//! [`waitpid(2)`](https://man7.org/linux/man-pages/man2/waitpid.2.html).
//!
//! The agent is PID 1 and a child subreaper: orphans of containers become its children too. So that
//! no exit status goes to the wrong place, nothing else in this process waits for children, crun
//! included; whoever starts one asks here.

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

/// An exit status that is there once the process has ended: its code, or 128 and the signal's
/// number.
pub(crate) type Exit = watch::Receiver<Option<i32>>;

/// Reaps every child when SIGCHLD comes.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<u32, watch::Sender<Option<i32>>>,
    /// Ends of processes that nobody watched yet, kept while somebody expects one.
    early: HashMap<u32, i32>,
    expecting: usize,
}

/// While it is held, no child that ends is forgotten: take it before a process is started, then
/// watch the process.
#[derive(Debug)]
pub(crate) struct Expectation {
    reaper: Arc<Reaper>,
}

impl Reaper {
    /// Reaps from now on.
    ///
    /// # Errors
    /// SIGCHLD cannot be handled.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let mut signals = signal(SignalKind::child())?;
        let reaper = Arc::new(Self::default());
        let this = Arc::clone(&reaper);
        tokio::spawn(async move {
            // Once without a signal: init's children may have ended before.
            loop {
                this.reap();
                if signals.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Announces that a child is about to be started.
    pub(crate) fn expect(self: &Arc<Self>) -> Expectation {
        self.table().expecting += 1;
        Expectation { reaper: Arc::clone(self) }
    }

    /// One signal may stand for many children.
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
        // The table is consistent after every statement: a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Expectation {
    /// The end of `pid`, even where it has come already.
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

/// Waits for an end.
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
    /// One test, since a reaper takes every child of its process: two at a time would take each
    /// other's.
    #[tokio::test]
    async fn every_child_is_reaped_and_its_status_goes_to_whoever_expects_it() {
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

            // Watched too late: the end of the second child tells that the first one's has been
            // handled.
            let (expectation, early) = shell("exit 3");
            let (_, pid) = shell(&format!("while kill -0 {early} 2>/dev/null; do :; done"));
            ended(&mut expectation.watch(pid)).await;
            assert_eq!(ended(&mut expectation.watch(early)).await, 3);
        }
        {
            // Nobody expects this one: it is reaped, and forgotten.
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
