//! Work for [tokio's pool of blocking threads](https://docs.rs/tokio/latest/tokio/task/#spawn_blocking),
//! for tests: kata-agent uses it for files, so that the number of its threads changes with its own
//! calls, without the plugin. A thread of the pool ends after ten seconds without work.

use std::sync::{
    Arc, Barrier,
    atomic::{AtomicUsize, Ordering},
};

/// Occupies threads of the pool.
#[derive(Debug)]
pub(crate) struct Pool {
    period: usize,
    calls: AtomicUsize,
}

impl Pool {
    /// Every `period`th call occupies two threads at once, each other call one.
    pub(crate) fn new(period: usize) -> Self {
        Self { period, calls: AtomicUsize::new(0) }
    }

    /// Returns how many threads the next call occupies.
    fn threads(&self) -> usize {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if call.is_multiple_of(self.period) { 2 } else { 1 }
    }

    /// Waits until the threads have done their work.
    pub(crate) async fn work(&self) {
        let threads = self.threads();
        // None of them ends before all have begun.
        let barrier = Arc::new(Barrier::new(threads));
        let tasks: Vec<_> = (0..threads)
            .map(|_| {
                let barrier = Arc::clone(&barrier);
                tokio::task::spawn_blocking(move || barrier.wait())
            })
            .collect();
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!("a task of the pool: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_third_call_occupies_a_second_thread() {
        let pool = Pool::new(3);
        assert_eq!([1, 2, 3, 4, 5, 6].map(|_| pool.threads()), [1, 1, 2, 1, 1, 2]);
        pool.work().await;
    }
}
