//! Work that may take long, on a thread of its own: searches of
//! [`/proc`](https://man7.org/linux/man-pages/man5/proc.5.html), whose length users of this host
//! decide, and system calls on the files of others, which a server may keep waiting. The command
//! itself hears its signals and its deadline meanwhile. The thread ends by itself soon after the
//! deadline, or after nobody waits for it any more.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use crate::{Deadline, Error};

/// A search ends this long before the command's deadline, but not more than a tenth of the time:
/// its error says more than that of whatever waits for it.
const MARGIN: Duration = Duration::from_millis(500);

/// How many descriptors are looked at between two looks at the clock.
pub(crate) const BATCH: usize = 256;

/// The limits of a search, and what it is doing.
#[derive(Debug, Clone)]
pub(crate) struct Search {
    deadline: Deadline,
    shared: Arc<Shared>,
}

struct Shared {
    /// Nobody waits for the result any more.
    abandoned: AtomicBool,
    /// Says what the search does now, for an error.
    step: Mutex<Step>,
}

type Step = Box<dyn Fn() -> String + Send>;

/// The search reached its deadline, or nobody waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeUp;

impl Search {
    pub(crate) fn until(deadline: Deadline) -> Self {
        let remaining = deadline.remaining();
        let limit = remaining - MARGIN.min(remaining / 10);
        let first: Step = Box::new(|| "the checks of the source".to_owned());
        let shared = Shared { abandoned: AtomicBool::new(false), step: Mutex::new(first) };
        Self { deadline: deadline.within(limit), shared: Arc::new(shared) }
    }

    /// Returns the same search with an earlier end.
    #[must_use]
    pub(crate) fn within(&self, limit: Duration) -> Self {
        Self { deadline: self.deadline.within(limit), shared: self.shared.clone() }
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.deadline.remaining()
    }

    /// Checks that the search may go on.
    pub(crate) fn check(&self) -> Result<(), TimeUp> {
        let ends = self.remaining().is_zero() || self.shared.abandoned.load(Ordering::Relaxed);
        if ends { Err(TimeUp) } else { Ok(()) }
    }

    /// Remembers how to say what the search does now.
    pub(crate) fn step(&self, what: impl Fn() -> String + Send + 'static) {
        *self.shared.step.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(what);
    }

    /// What a search that did not end in time is waiting for.
    fn late(&self) -> Error {
        let step = self.shared.step.lock().unwrap_or_else(PoisonError::into_inner);
        Error::TimedOut { what: step() }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("abandoned", &self.abandoned).finish_non_exhaustive()
    }
}

/// Marks a search as abandoned when it is dropped.
struct Waiter(Arc<Shared>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::Relaxed);
    }
}

/// Does `work` on a thread of its own and awaits it until the deadline. If this future is dropped,
/// the thread ends on its own.
///
/// # Errors
/// Those of `work`; or it did not end in time, and the error says what it was doing.
pub(crate) async fn run<T: Send + 'static>(
    deadline: Deadline,
    work: impl FnOnce(&Search) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let search = Search::until(deadline);
    let waiter = Waiter(search.shared.clone());
    let (sender, receiver) = oneshot::channel();
    let theirs = search.clone();
    let thread = std::thread::Builder::new().name("source".to_owned());
    let thread = thread
        .spawn(move || {
            // The result may hold descriptors: it is dropped here if nobody takes it.
            let _ = sender.send(work(&theirs));
        })
        .map_err(|e| Error::system("clone", "", e))?;
    let done = deadline.wait(receiver).await;
    drop(waiter);
    match done {
        Ok(Ok(result)) => result,
        // The thread has ended without a result: it panicked.
        Ok(Err(_)) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => Err(search.late()),
        },
        Err(_) => Err(search.late()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn work_that_does_not_end_is_left_alone_at_the_deadline() {
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let work = move |search: &Search| {
            search.step(|| "a server that does not reply".to_owned());
            let _ = end.recv();
            Ok(())
        };
        let start = Instant::now();
        let error = run(Deadline::after(Duration::from_millis(50)), work).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert_eq!(error.to_string(), "timed out waiting for a server that does not reply");
        drop(ended);
    }

    #[tokio::test]
    async fn a_search_that_nobody_waits_for_ends() {
        let (sender, receiver) = oneshot::channel();
        let work = |search: &Search| {
            while search.check().is_ok() {
                std::thread::yield_now();
            }
            let _ = sender.send(search.remaining());
            Ok(())
        };
        let deadline = Deadline::after(Duration::from_secs(600));
        let wait = run(deadline, work);
        assert!(Deadline::after(Duration::from_millis(10)).wait(wait).await.is_err());
        assert!(receiver.await.unwrap() > Duration::from_secs(60), "it did not wait for its end");
    }

    #[tokio::test]
    async fn a_search_ends_before_the_command() {
        let deadline = Deadline::after(Duration::from_secs(10));
        let search = Search::until(deadline);
        assert!(search.remaining() < deadline.remaining() - Duration::from_millis(400));
        assert_eq!(search.within(Duration::ZERO).check(), Err(TimeUp));
        assert_eq!(search.check(), Ok(()));
    }
}
