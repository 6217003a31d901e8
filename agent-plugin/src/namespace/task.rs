//! Work on a separate thread, with a deadline.
//!
//! A thread that does not return in time is abandoned. It may be anywhere then, also before its
//! first step, and must change nothing from that moment on: work that changes something calls
//! [`check_awaited`] right before each change.

use std::{
    cell::RefCell,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::{
    error::{BoxedError, Error, Result},
    thread::Thread,
    worker::{Value, Worker, typed},
};

/// A container may keep this many abandoned threads. Each costs memory and descriptors for as long
/// as the file system does not answer, so more are not started.
const MOST_ABANDONED: usize = 8;

/// How many abandoned threads each container keeps.
static ABANDONED: Mutex<Vec<(Arc<str>, usize)>> = Mutex::new(Vec::new());

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
    task: Task,
    result: PhantomData<fn() -> T>,
}

/// A [`NamespaceTask`] without the type of its result, so that it is compiled once.
#[derive(Debug)]
struct Task {
    /// It returns nothing if it was abandoned.
    worker: Worker<Option<Result<Value>>>,
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
    ) -> Result<NamespaceTask<T>> {
        NamespaceTask::boxed(id, work, Box::new(drop))
    }

    /// `undo` gets the result of work that was abandoned.
    pub(super) fn start_with_undo(
        id: &Arc<str>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        let undo = move |done| {
            let _ = typed(done).map(undo);
        };
        NamespaceTask::boxed(id, work, Box::new(undo))
    }

    fn boxed(
        id: &Arc<str>,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        abandoned: Box<dyn FnOnce(Value) + Send>,
    ) -> Result<NamespaceTask<T>> {
        let work = Box::new(move || -> Result<Value> { Ok(Box::new(work()?)) });
        Ok(NamespaceTask { task: Task::start(id, work, abandoned)?, result: PhantomData })
    }

    /// Waits for the result. A thread that does not return by the deadline is abandoned.
    ///
    /// # Errors
    /// What the closure returned, or [`Error::TimedOut`].
    pub fn finish(self, deadline: Instant) -> Result<T> {
        typed(self.task.finish(deadline)?)
    }
}

impl Task {
    fn start(
        id: &Arc<str>,
        work: Box<dyn FnOnce() -> Result<Value> + Send>,
        abandoned: Box<dyn FnOnce(Value) + Send>,
    ) -> Result<Task> {
        let mine = Work { decided: Arc::default(), id: id.clone() };
        let theirs = mine.clone();
        let run = move || {
            CURRENT.set(Some(mine.clone()));
            let done = catch_unwind(AssertUnwindSafe(work))
                .unwrap_or(Err(BoxedError::from(Error::Panicked)));
            if !mine.decided.swap(true, Ordering::AcqRel) {
                return Some(done);
            }
            // Abandoned. Work that failed has changed nothing. The rollback is not abandoned.
            CURRENT.set(None);
            let _ = done.map(abandoned);
            mine.returned();
            None
        };
        Ok(Task { worker: Worker::start(Thread::Namespace, run)?, work: Awaited(theirs) })
    }

    fn finish(self, deadline: Instant) -> Result<Value> {
        let patience = deadline.saturating_duration_since(Instant::now());
        if !self.worker.ends_within(patience) && self.work.0.abandon() {
            return Err(self.work.0.timed_out());
        }
        // Done, perhaps at the last moment: the thread has nothing left to do but to end. After the
        // join, no thread of ours is in the namespace any more.
        self.worker.join()?.unwrap_or(Err(BoxedError::from(Error::Panicked)))
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
        match all.iter_mut().find(|(id, _)| *id == self.id) {
            Some((_, count)) => *count += 1,
            None => all.push((self.id.clone(), 1)),
        }
        true
    }

    /// The abandoned thread has returned.
    fn returned(&self) {
        let mut all = abandoned();
        if let Some(index) = all.iter().position(|(id, _)| *id == self.id) {
            all[index].1 -= 1;
            if all[index].1 == 0 {
                all.swap_remove(index);
            }
        }
    }

    fn timed_out(&self) -> BoxedError {
        BoxedError::from(Error::TimedOut {
            awaited: format!("a file system of container {}", self.id),
        })
    }
}

/// Checks that a container does not keep too many abandoned threads for another one.
///
/// # Errors
/// [`Error::TimedOut`], at once: a further thread would not return either.
pub(super) fn check_abandoned(id: &Arc<str>) -> Result<()> {
    let count = abandoned().iter().find(|(of, _)| of == id).map_or(0, |(_, count)| *count);
    if count < MOST_ABANDONED {
        return Ok(());
    }
    let awaited = format!("a file system of container {id}, as {count} earlier requests do");
    Err(Error::TimedOut { awaited }.into())
}

/// A panic elsewhere leaves a count that is complete.
fn abandoned() -> MutexGuard<'static, Vec<(Arc<str>, usize)>> {
    ABANDONED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Barrier, mpsc},
        thread,
        time::Duration,
    };

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
        let task = NamespaceTask::start(&"late".into(), work).unwrap();
        assert!(matches!(
            task.finish(Instant::now()).as_ref().map_err(|error| &**error),
            Err(Error::TimedOut { .. })
        ));
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
        drop(NamespaceTask::start_with_undo(&"dropped".into(), work, undo).unwrap());
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
            let undo = move |()| drop(returned);
            let task = NamespaceTask::start_with_undo(&id, work, undo).unwrap();
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
        let task = NamespaceTask::start(&"fine".into(), || Ok(7)).unwrap();
        assert_eq!(task.finish(soon()).unwrap(), 7);
        assert!(!abandoned().iter().any(|(id, _)| **id == *"fine"));
    }
}
