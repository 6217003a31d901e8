//! The point in time at which a wait ends.
//!
//! A command has one [`Deadline`]; each single wait ends at the earlier of that and its own limit.
//! The clock is [`CLOCK_MONOTONIC`](https://man7.org/linux/man-pages/man2/clock_gettime.2.html).

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// A point in time that a wait ends at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// The deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl Deadline {
    /// From now on.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// Whichever comes first: this one, or `limit` from now.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        self.min(Self::after(limit))
    }

    /// So much later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0 + time)
    }

    /// What is left; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Awaits `work` until then.
    ///
    /// # Errors
    /// The deadline passed first; `work` is dropped.
    pub async fn wait<T>(self, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        tokio::time::timeout_at(self.0.into(), work).await.map_err(|_| Elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_at_the_earlier_limit() {
        let deadline = Deadline::after(Duration::from_secs(60)).within(Duration::from_millis(1));
        assert_eq!(deadline.wait(std::future::pending::<()>()).await, Err(Elapsed));
    }
}
