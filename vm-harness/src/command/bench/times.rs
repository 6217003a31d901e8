//! Times of a benchmark, in microseconds, and how they are printed.

use std::time::Duration;

/// Prints minimum, median and 90th percentile of times, in milliseconds.
pub(super) fn row(name: &str, times: &[u64]) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = |share: usize| {
        sorted.get(sorted.len() * share / 100).map_or(0.0, |&time| time as f64 / 1000.0)
    };
    println!("{name:<42} {:7.2} / {:7.2} / {:7.2}", at(0), median(times) as f64 / 1000.0, at(90));
}

/// Returns the median.
pub(super) fn median(times: &[u64]) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Returns whole microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
