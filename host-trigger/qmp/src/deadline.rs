//! The point in time at which a wait ends.
//!
//! A run has one [`Deadline`]. Each single wait ends at that or at its own limit, whichever is
//! earlier.
//! The clock is [`CLOCK_MONOTONIC`](https://man7.org/linux/man-pages/man2/clock_gettime.2.html).

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// The point in time at which a wait ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// The deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl Deadline {
    /// Returns the deadline that is `time` from now.
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// Returns this deadline or the one `limit` from now, whichever is earlier.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        self.min(Self::after(limit))
    }

    /// Returns a deadline that is `time` later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0 + time)
    }

    /// Returns the time that is left; zero if the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Awaits `work` until the deadline.
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
