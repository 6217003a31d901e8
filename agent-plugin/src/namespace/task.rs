//! Work on a separate thread, with a deadline.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use crate::error::{Error, Result};

/// A closure that runs on its own thread, in most cases inside a container's mount namespace.
#[derive(Debug)]
pub struct NamespaceTask<T> {
    result: mpsc::Receiver<Result<T>>,
    thread: thread::JoinHandle<()>,
    /// Set by the first of the two: the thread when it is done, or the waiting side when it
    /// abandons the thread.
    decided: Arc<AtomicBool>,
    id: Arc<str>,
}

impl<T: Send + 'static> NamespaceTask<T> {
    pub(crate) fn start(
        id: &Arc<str>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        abandoned: impl FnOnce(T) + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        let (sender, result) = mpsc::sync_channel(1);
        let decided = Arc::new(AtomicBool::new(false));
        let mine = decided.clone();
        let run = move || {
            let done = work();
            if mine.swap(true, Ordering::AcqRel) {
                // Abandoned. Work that failed has changed nothing.
                let _ = done.map(abandoned);
            } else {
                // The receiver is gone where the task was dropped without a wait: its request has
                // failed.
                let _ = sender.send(done);
            }
        };
        let thread = thread::Builder::new()
            .name("block-volume-ns".to_owned())
            .spawn(run)
            .map_err(Error::system("clone", "a thread"))?;
        Ok(NamespaceTask { result, thread, decided, id: id.clone() })
    }

    /// Waits for the result. A thread that does not return by the deadline is abandoned.
    ///
    /// # Errors
    /// What the closure returned, or [`Error::TimedOut`].
    pub fn finish(self, deadline: Instant) -> Result<T> {
        // At least a time in which any working file system answers: a deadline that has passed must
        // not abandon a thread that is nearly done.
        let patience =
            deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        let result = match self.result.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) if !self.decided.swap(true, Ordering::AcqRel) => {
                return Err(Error::TimedOut {
                    awaited: format!("a file system of container {}", self.id),
                });
            }
            // Done at the last moment.
            Err(RecvTimeoutError::Timeout) => self.result.recv().map_err(|_| Error::Panicked)?,
            Err(RecvTimeoutError::Disconnected) => return Err(Error::Panicked),
            Ok(result) => result,
        };
        // The thread has nothing left to do but to end. After the join, no thread of ours is in the
        // namespace any more.
        self.thread.join().map_err(|_| Error::Panicked)?;
        result
    }
}
