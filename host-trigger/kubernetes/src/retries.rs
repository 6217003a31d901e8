//! When something is tried again that fails: after a pause that doubles each time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The pause after the first failure.
const FIRST: Duration = Duration::from_secs(5);
/// The number of attachments above which those are dropped that are not tried any more.
const MANY: usize = 1000;

/// How often something was tried for each attachment since it last succeeded, and when it is tried
/// again.
#[derive(Debug)]
pub(crate) struct Retries {
    longest: Duration,
    by_uid: Mutex<HashMap<String, Tried>>,
}

#[derive(Debug)]
struct Tried {
    times: u32,
    next: Instant,
}

impl Retries {
    /// With a pause of at most `longest`.
    pub(crate) fn new(longest: Duration) -> Self {
        Self { longest, by_uid: Mutex::default() }
    }

    fn by_uid(&self) -> MutexGuard<'_, HashMap<String, Tried>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that it was tried `now` for this attachment. Returns the time until the next try.
    pub(crate) fn note(&self, uid: &str, now: Instant) -> Duration {
        let mut by_uid = self.by_uid();
        // An attachment that is gone is never forgotten by a success.
        if by_uid.len() >= MANY {
            by_uid.retain(|_, tried| now < tried.next + self.longest);
        }
        let times = by_uid.get(uid).map_or(0, |tried| tried.times).saturating_add(1);
        let pause = self.longest.min(FIRST * (1 << (times - 1).min(10)));
        by_uid.insert(uid.to_owned(), Tried { times, next: now + pause });
        pause
    }

    /// The time until it is tried again; zero if it may be tried `now`.
    pub(crate) fn left(&self, uid: &str, now: Instant) -> Duration {
        self.by_uid()
            .get(uid)
            .map_or(Duration::ZERO, |tried| tried.next.saturating_duration_since(now))
    }

    /// It has succeeded.
    pub(crate) fn forget(&self, uid: &str) {
        self.by_uid().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_until_it_succeeds() {
        let (retries, now) = (Retries::new(Duration::from_secs(60)), Instant::now());
        assert_eq!(retries.left("a", now), Duration::ZERO);
        let seconds: Vec<_> = (0..6).map(|_| retries.note("a", now).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 20, 40, 60, 60]);
        assert_eq!(retries.left("a", now + Duration::from_secs(50)), Duration::from_secs(10));
        assert_eq!(retries.left("a", now + Duration::from_secs(61)), Duration::ZERO);
        assert_eq!(retries.note("b", now).as_secs(), 5);
        retries.forget("a");
        assert_eq!(retries.left("a", now), Duration::ZERO);
        assert_eq!(retries.note("a", now).as_secs(), 5);
    }

    #[test]
    fn what_is_not_tried_any_more_is_dropped() {
        let retries = Retries::new(Duration::from_secs(60));
        let mut now = Instant::now();
        for number in 0..3 * MANY {
            retries.note(&number.to_string(), now);
            now += Duration::from_secs(1);
        }
        assert!(retries.by_uid().len() <= MANY);
    }
}
