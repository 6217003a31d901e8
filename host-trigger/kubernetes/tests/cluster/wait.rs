//! Waiting for what the API server has: it is asked again and again until it is as awaited.

use std::time::{Duration, Instant};

/// The time for anything, on a machine that does other things, too. A watch that has failed several
/// times begins again after half a minute.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);
/// How often it is asked.
pub(crate) const INTERVAL: Duration = Duration::from_millis(50);

/// Waits until `is_so`.
pub(crate) async fn until<F: Future<Output = bool>>(awaited: &str, is_so: impl FnMut() -> F) {
    until_within(LIMIT, awaited, is_so).await;
}

/// Waits until `is_so`, at most for `limit`.
pub(crate) async fn until_within<F: Future<Output = bool>>(
    limit: Duration,
    awaited: &str,
    mut is_so: impl FnMut() -> F,
) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < limit, "not in {limit:?}: {awaited}");
        tokio::time::sleep(INTERVAL).await;
    }
}
