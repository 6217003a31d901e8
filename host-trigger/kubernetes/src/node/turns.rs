//! How many volumes are worked on at a time, and how many of one namespace. Work may last until its
//! deadline, for one in use as for a guest that does not reply: a namespace that has many such
//! volumes keeps half of the node agent busy, and not the half that others need.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All work. Each takes a thread and a few descriptors.
const AT_A_TIME: usize = 8;
/// That of one namespace.
const OF_ONE_NAMESPACE: usize = 4;

#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    by_namespace: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// The permission to work, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _all: OwnedSemaphorePermit,
    _of_namespace: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(AT_A_TIME)), by_namespace: Mutex::default() }
    }
}

impl Turns {
    /// Waits for a turn; `None` after [`Self::close`].
    pub(super) async fn take(&self, namespace: &str) -> Option<Turn> {
        let of_namespace = self.of(namespace).acquire_owned().await.ok()?;
        // In this order, so that those who wait for the first one keep no other from the second.
        let all = self.all.clone().acquire_owned().await.ok()?;
        Some(Turn { _all: all, _of_namespace: of_namespace })
    }

    fn of(&self, namespace: &str) -> Arc<Semaphore> {
        let mut all = self.by_namespace.lock().unwrap_or_else(PoisonError::into_inner);
        // Those without a holder or a waiter.
        all.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        let new = || Arc::new(Semaphore::new(OF_ONE_NAMESPACE));
        all.entry(namespace.to_owned()).or_insert_with(new).clone()
    }

    /// There are no turns any more.
    pub(super) fn close(&self) {
        self.all.close();
        let all = self.by_namespace.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().for_each(|semaphore| semaphore.close());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn one_namespace_leaves_turns_for_others() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for _ in 0..OF_ONE_NAMESPACE {
            taken.push(turns.take("db").await.unwrap());
        }
        assert!(turns.take("db").now_or_never().is_none());
        taken.push(turns.take("shop").await.unwrap());
        taken.remove(0);
        taken.push(turns.take("db").now_or_never().flatten().unwrap());
        drop(taken);
        // Nothing is kept of namespaces without work.
        let _one = turns.take("db").await;
        assert_eq!(turns.by_namespace.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_turn_after_the_end() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for _ in 0..OF_ONE_NAMESPACE {
            taken.push(turns.take("db").await);
        }
        let mut waits = std::pin::pin!(turns.take("db"));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        turns.close();
        assert!(waits.await.is_none());
        assert!(turns.take("shop").await.is_none());
    }
}
