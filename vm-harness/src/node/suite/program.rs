//! Programs of the node, and `ecr-runtime` as an administrator types it: the one that the package
//! installed, where it finds everything by itself.

use std::time::{Duration, Instant};

use tokio::process::Command;

use super::containerd::scaled;
use crate::Finished;

/// The default limit of `ecr-runtime`.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a program to its end, and returns what it printed to standard output.
///
/// # Panics
/// It cannot be run, or fails.
pub(super) async fn run(words: &[&str]) -> String {
    let finished = finish(words).await;
    let Finished { status, stdout, stderr, .. } = finished;
    assert_eq!(status, 0, "{words:?} failed: {stdout}{stderr}");
    stdout
}

/// Runs `ecr-runtime` with JSON output, and its default time limit scaled for this node.
///
/// # Panics
/// It cannot be run.
pub(super) async fn ecr_runtime(words: &[&str]) -> Finished {
    let limit = format!("{}s", scaled(TIMEOUT).as_secs());
    let takes_limit = ["block-volume", "check"].contains(&words[0]);
    let limit: &[&str] = if takes_limit { &["--timeout", &limit] } else { &[] };
    finish(&[&["ecr-runtime"], words, &["--output", "json"], limit].concat()).await
}

/// Runs `ecr-runtime`, and returns its JSON output.
///
/// # Panics
/// It cannot be run, or fails.
pub(super) async fn ecr_runtime_succeeds(words: &[&str]) -> serde_json::Value {
    let finished = ecr_runtime(words).await;
    let Finished { status, stdout, stderr, .. } = &finished;
    assert_eq!(*status, 0, "ecr-runtime {words:?} failed: {stdout}{stderr}");
    finished.json()
}

async fn finish(words: &[&str]) -> Finished {
    let start = Instant::now();
    let mut command = Command::new(words[0]);
    let output = command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive").output().await;
    let output = output.unwrap_or_else(|error| panic!("cannot run {words:?}: {error}"));
    Finished::new(&output, start.elapsed())
}

/// Waits until something holds of which no event tells.
///
/// # Panics
/// It does not within `limit`.
pub(super) async fn until(awaited: &str, limit: Duration, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds().await {
        assert!(Instant::now() < deadline, "{awaited} did not come within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
