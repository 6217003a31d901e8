//! The pause after a watch that failed.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// The pause, always the same: with pauses that double, the controller would see changes up to half
/// a minute after the API server is back. One process that asks once a second is no load.
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
