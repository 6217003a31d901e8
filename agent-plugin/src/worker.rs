//! A closure on a thread of its own.
//!
//! `std` compiles its threads and channels once more for each closure and each type that is sent.
//! Here closures and their results are boxed, so that most of it is compiled once.

use std::{
    any::Any,
    marker::PhantomData,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use crate::{
    error::{BoxedError, Error, Result},
    thread::Thread,
};

/// A value of any type, on its way from one thread to another.
pub(crate) type Value = Box<dyn Any + Send>;

/// Starts a thread that ends with `work`.
///
/// # Errors
/// The kernel refuses a thread.
pub(crate) fn spawn(kind: Thread, work: Box<dyn FnOnce() + Send>) -> Result<JoinHandle<()>> {
    kind.builder().spawn(work).map_err(Error::system("clone", &"a thread"))
}

/// A thread whose closure returns a value. If it is dropped, the thread continues.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    running: Running,
    result: PhantomData<fn() -> T>,
}

/// A [`Worker`] without the type of its value.
#[derive(Debug)]
struct Running {
    result: Arc<Mutex<Option<Value>>>,
    end: Arc<End>,
    thread: JoinHandle<()>,
}

impl<T: Send + 'static> Worker<T> {
    /// Runs `work` on a thread.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub(crate) fn start(
        kind: Thread,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Worker<T>> {
        let running = Running::start(kind, Box::new(move || Box::new(work())))?;
        Ok(Worker { running, result: PhantomData })
    }

    /// Waits until the closure has returned or panicked, at most for `patience`. Returns whether it
    /// has.
    pub(crate) fn ends_within(&self, patience: Duration) -> bool {
        self.running.end.is_reached_within(patience)
    }

    /// Waits for the end of the thread, and returns the value.
    ///
    /// # Errors
    /// [`Error::Panicked`].
    pub(crate) fn join(self) -> Result<T> {
        typed(self.running.join()?)
    }
}

/// The value with its type.
///
/// # Errors
/// [`Error::Panicked`]: it has another one.
pub(crate) fn typed<T: 'static>(value: Value) -> Result<T> {
    match value.downcast() {
        Ok(value) => Ok(*value),
        Err(_) => Err(BoxedError::from(Error::Panicked)),
    }
}

impl Running {
    fn start(kind: Thread, work: Box<dyn FnOnce() -> Value + Send>) -> Result<Running> {
        let (result, end) = (Arc::new(Mutex::new(None)), Arc::<End>::default());
        let (slot, ends) = (result.clone(), EndOnDrop(end.clone()));
        let run = move || {
            let _ends = ends;
            let done = work();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        };
        Ok(Running { result, end, thread: spawn(kind, Box::new(run))? })
    }

    fn join(self) -> Result<Value> {
        self.thread.join().map_err(|_| Error::Panicked)?;
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(result.take().ok_or(Error::Panicked)?)
    }
}

/// Whether the closure has returned or panicked.
#[derive(Debug, Default)]
struct End {
    is_reached: Mutex<bool>,
    changed: Condvar,
}

impl End {
    fn is_reached_within(&self, patience: Duration) -> bool {
        let is_reached = self.is_reached.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(is_reached, patience, |reached| !*reached);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Reaches the end when it is dropped, also by a panic.
struct EndOnDrop(Arc<End>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        *self.0.is_reached.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn the_value_is_there_when_the_thread_has_ended() {
        let worker = Worker::start(Thread::Request, || 7).unwrap();
        assert!(worker.ends_within(LONG));
        assert_eq!(worker.join().unwrap(), 7);
    }

    #[test]
    fn a_wait_ends_in_time() {
        let (end, ended) = mpsc::channel::<()>();
        let worker = Worker::start(Thread::Request, move || ended.recv().is_err()).unwrap();
        assert!(!worker.ends_within(Duration::ZERO));
        drop(end);
        assert!(worker.join().unwrap());
    }

    #[test]
    fn a_panic_ends_a_wait_and_is_an_error() {
        let worker = Worker::start(Thread::Request, || -> u8 { panic!("a bug") }).unwrap();
        assert!(worker.ends_within(LONG));
        assert!(matches!(worker.join().as_ref().map_err(|error| &**error), Err(Error::Panicked)));
    }
}
