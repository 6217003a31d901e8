//! The pause after a watch that failed.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// The pause, always the same. The controller has several watches, and a pause after one of them
/// holds up all: after the API server was away each fails more than once, and with pauses that
/// double they would take minutes together. One process more that asks once a second is no load.
#[derive(Debug)]
pub(super) struct Pause;

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {}
}
