//! The point in time at which a wait ends.
//!
//! A run has one [`Deadline`]. Each single wait ends at that or at its own limit, whichever is
//! earlier.
//! The clock is [`CLOCK_MONOTONIC`](https://man7.org/linux/man-pages/man2/clock_gettime.2.html).

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// The time for a whole command by default. The caps on single waits are made for it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// The point in time at which a wait ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    at: Instant,
    /// The time that the user gave to the whole command; zero if this is no command's deadline.
    whole: Duration,
}

/// The deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elapsed;

impl Deadline {
    /// Returns the deadline that is `time` from now.
    pub fn after(time: Duration) -> Self {
        Self { at: Instant::now() + time, whole: Duration::ZERO }
    }

    /// Returns the deadline of a command to which the user gave `time`.
    pub fn of_command(time: Duration) -> Self {
        Self { whole: time, ..Self::after(time) }
    }

    /// Returns this deadline or the one `cap` from now, whichever is earlier. If the user gave the
    /// command more than the default time, the cap is longer in proportion: somebody who has
    /// patience has it with each step.
    #[must_use]
    pub fn capped(self, cap: Duration) -> Self {
        let proportion = self.whole.as_secs_f64() / DEFAULT_TIMEOUT.as_secs_f64();
        self.within(cap.mul_f64(proportion.max(1.0)))
    }

    /// Returns this deadline or the one `limit` from now, whichever is earlier.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { at: self.at.min(Instant::now() + limit), ..self }
    }

    /// Returns a deadline that is `time` later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self { at: self.at + time, ..self }
    }

    /// Returns the time that is left; zero if the deadline has passed.
    pub fn remaining(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Awaits `work` until the deadline.
    ///
    /// # Errors
    /// The deadline passed first; `work` is dropped.
    pub async fn wait<T>(self, work: impl Future<Output = T>) -> Result<T, Elapsed> {
        tokio::time::timeout_at(self.at.into(), work).await.map_err(|_| Elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_grows_with_the_time_that_the_user_gave() {
        let cap = Duration::from_secs(2);
        let capped = |seconds| {
            let whole = Deadline::of_command(Duration::from_secs(seconds));
            // Also of a deadline that is derived from it.
            let later = whole.plus(Duration::from_secs(1)).within(Duration::from_secs(1000));
            let capped = whole.capped(cap);
            assert!(later.capped(cap) >= capped);
            capped.remaining().as_secs_f64().round()
        };
        assert_eq!([1, 10, 30, 60, 300].map(capped), [1.0, 2.0, 2.0, 4.0, 20.0]);
        let other = Deadline::after(Duration::from_secs(300)).capped(cap).remaining();
        assert!(other <= cap);
    }

    #[tokio::test]
    async fn a_wait_ends_at_the_earlier_limit() {
        let deadline = Deadline::after(Duration::from_secs(60)).within(Duration::from_millis(1));
        assert_eq!(deadline.wait(std::future::pending::<()>()).await, Err(Elapsed));
    }
}
