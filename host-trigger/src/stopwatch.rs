//! Measures how long the stages of a command take.

use std::time::{Duration, Instant};

/// The stages of a command and their times, in the order in which they ended.
#[derive(Debug, Clone)]
pub struct Stopwatch {
    start: Instant,
    last: Instant,
    stages: Vec<(String, u64)>,
}

impl Stopwatch {
    /// Starts now.
    #[expect(clippy::new_without_default, reason = "starting a clock is no default value")]
    pub fn new() -> Self {
        let start = Instant::now();
        Self { start, last: start, stages: Vec::new() }
    }

    /// Ends the stage `name`; the next one begins.
    pub fn lap(&mut self, name: impl Into<String>) {
        let now = Instant::now();
        self.record(name, now - self.last);
        self.last = now;
    }

    /// Adds a stage that was measured elsewhere, for instance one that ran in parallel.
    pub fn record(&mut self, name: impl Into<String>, time: Duration) {
        self.stages.push((name.into(), u64::try_from(time.as_micros()).unwrap_or(u64::MAX)));
    }

    /// Returns all stages in microseconds, and `total` since the start.
    pub fn finish(mut self) -> Vec<(String, u64)> {
        let total = self.start.elapsed();
        self.record("total", total);
        self.stages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_keep_their_order_and_end_with_the_total() {
        let mut watch = Stopwatch::new();
        watch.lap("b");
        watch.record("a", Duration::from_micros(7));
        let stages = watch.finish();
        let names: Vec<_> = stages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["b", "a", "total"]);
        assert_eq!(stages[1].1, 7);
    }
}
