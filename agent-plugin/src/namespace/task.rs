//! Work on a separate thread, with a deadline.
//!
//! A thread that does not return in time is abandoned. It may be anywhere then, also before its
//! first step, and must change nothing from that moment on: work that changes something calls
//! [`check_awaited`] right before each change.

use std::{
    cell::RefCell,
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Instant,
};

use crate::error::{Error, Result};

/// A container may keep this many abandoned threads. Each costs memory and descriptors for as long
/// as the file system does not answer, so more are not started.
const MOST_ABANDONED: usize = 8;

/// How many abandoned threads each container keeps.
static ABANDONED: Mutex<Option<HashMap<Arc<str>, usize>>> = Mutex::new(None);

thread_local! {
    /// The work that the thread does; none on the thread of a request.
    static CURRENT: RefCell<Option<Work>> = const { RefCell::new(None) };
}

/// Work that is under way.
#[derive(Debug, Clone)]
struct Work {
    /// Set by the first of the two: the thread when it is done, or the waiting side when it
    /// abandons the thread.
    decided: Arc<AtomicBool>,
    id: Arc<str>,
}

/// A closure that runs on its own thread, in most cases inside a container's mount namespace.
#[derive(Debug)]
pub struct NamespaceTask<T> {
    result: mpsc::Receiver<Result<T>>,
    thread: thread::JoinHandle<()>,
    work: Awaited,
}

/// The side that waits. A task that is dropped without a wait is abandoned, too.
#[derive(Debug)]
struct Awaited(Work);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// Checks that the calling thread's work was not abandoned. On the thread of a request it never is.
///
/// # Errors
/// [`Error::TimedOut`].
pub(crate) fn check_awaited() -> Result<()> {
    CURRENT.with_borrow(|work| match work {
        Some(work) if work.decided.load(Ordering::Acquire) => Err(work.timed_out()),
        _ => Ok(()),
    })
}

impl<T: Send + 'static> NamespaceTask<T> {
    pub(crate) fn start(
        id: &Arc<str>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        abandoned: impl FnOnce(T) + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        let (sender, result) = mpsc::sync_channel(1);
        let mine = Work { decided: Arc::default(), id: id.clone() };
        let theirs = mine.clone();
        let run = move || {
            CURRENT.set(Some(mine.clone()));
            let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Error::Panicked));
            if mine.decided.swap(true, Ordering::AcqRel) {
                // Abandoned. Work that failed has changed nothing. The rollback is not abandoned.
                CURRENT.set(None);
                let _ = done.map(abandoned);
                mine.returned();
            } else {
                // The receiver is gone where the task was dropped at this moment: its request has
                // failed.
                let _ = sender.send(done);
            }
        };
        let thread = thread::Builder::new()
            .name("block-volume-ns".to_owned())
            .spawn(run)
            .map_err(Error::system("clone", "a thread"))?;
        Ok(NamespaceTask { result, thread, work: Awaited(theirs) })
    }

    /// Waits for the result. A thread that does not return by the deadline is abandoned.
    ///
    /// # Errors
    /// What the closure returned, or [`Error::TimedOut`].
    pub fn finish(self, deadline: Instant) -> Result<T> {
        let patience = deadline.saturating_duration_since(Instant::now());
        let result = match self.result.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) if self.work.0.abandon() => {
                return Err(self.work.0.timed_out());
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

impl Work {
    /// Abandons the work. `false`: it is done, or was abandoned before.
    fn abandon(&self) -> bool {
        // The thread subtracts itself after it has seen `decided`, so it is added before.
        let mut all = abandoned();
        if self.decided.swap(true, Ordering::AcqRel) {
            return false;
        }
        *all.get_or_insert_default().entry(self.id.clone()).or_default() += 1;
        true
    }

    /// The abandoned thread has returned.
    fn returned(&self) {
        let mut all = abandoned();
        let Some(threads) = all.as_mut() else { return };
        if let Some(count) = threads.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                threads.remove(&self.id);
            }
        }
    }

    fn timed_out(&self) -> Error {
        Error::TimedOut { awaited: format!("a file system of container {}", self.id) }
    }
}

/// Checks that a container does not keep too many abandoned threads for another one.
///
/// # Errors
/// [`Error::TimedOut`], at once: a further thread would not return either.
pub(super) fn check_abandoned(id: &Arc<str>) -> Result<()> {
    let count = abandoned().as_ref().and_then(|all| all.get(id).copied()).unwrap_or_default();
    if count < MOST_ABANDONED {
        return Ok(());
    }
    let awaited = format!("a file system of container {id}, as {count} earlier requests do");
    Err(Error::TimedOut { awaited })
}

/// A panic elsewhere leaves a count that is complete.
fn abandoned() -> MutexGuard<'static, Option<HashMap<Arc<str>, usize>>> {
    ABANDONED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, time::Duration};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn abandoned_work_notices_it_before_its_first_change() {
        let (start, changed) = (Arc::new(Barrier::new(2)), Arc::new(AtomicBool::new(false)));
        let (late, (end, ended)) = (start.clone(), mpsc::channel());
        let change = changed.clone();
        let work = move || {
            late.wait();
            let result = check_awaited().map(|()| change.store(true, Ordering::Release));
            end.send(result.is_err()).unwrap();
            result
        };
        let task = NamespaceTask::start(&"late".into(), work, drop).unwrap();
        assert!(matches!(task.finish(Instant::now()), Err(Error::TimedOut { .. })));
        start.wait();
        assert!(ended.recv().unwrap(), "the thread was told");
        assert!(!changed.load(Ordering::Acquire));
    }

    #[test]
    fn work_that_nobody_waits_for_is_abandoned() {
        let start = Arc::new(Barrier::new(2));
        let (late, (end, ended)) = (start.clone(), mpsc::channel());
        let work = move || {
            late.wait();
            Ok(())
        };
        let undo = move |()| end.send(check_awaited().is_ok()).unwrap();
        drop(NamespaceTask::start(&"dropped".into(), work, undo).unwrap());
        start.wait();
        assert!(ended.recv().unwrap(), "its result is rolled back");
    }

    #[test]
    fn a_container_keeps_a_bounded_number_of_threads() {
        let id: Arc<str> = "silent".into();
        let end = Arc::new(Barrier::new(MOST_ABANDONED + 1));
        let (returned, all_returned) = mpsc::channel::<()>();
        for _ in 0..MOST_ABANDONED {
            check_abandoned(&id).unwrap();
            let (end, returned) = (end.clone(), returned.clone());
            let work = move || {
                end.wait();
                Ok(())
            };
            let task = NamespaceTask::start(&id, work, move |()| drop(returned)).unwrap();
            task.finish(Instant::now()).unwrap_err();
        }
        let error = check_abandoned(&id).unwrap_err().to_string();
        assert!(error.contains("container silent, as 8 earlier requests do"), "{error}");
        check_abandoned(&"other".into()).unwrap();
        end.wait();
        drop(returned);
        all_returned.recv().unwrap_err();
        // The last thread subtracts itself right after it has dropped the sender.
        while check_abandoned(&id).is_err() {
            thread::yield_now();
        }
    }

    #[test]
    fn finished_work_is_returned_and_leaves_nothing() {
        let task = NamespaceTask::start(&"fine".into(), || Ok(7), drop).unwrap();
        assert_eq!(task.finish(soon()).unwrap(), 7);
        assert!(!abandoned().as_ref().is_some_and(|all| all.contains_key("fine")));
    }
}
