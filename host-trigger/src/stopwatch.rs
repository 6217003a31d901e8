//! How long the stages of a command took.

use std::time::{Duration, Instant};

/// Parses `30`, `30s`, `1500ms` or `2m`; a bare number is in seconds.
///
/// # Errors
/// Says what is accepted.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis_per_unit = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        _ => return Err("expected a time such as 30s, 1500ms or 2m".to_owned()),
    };
    let number: u64 =
        number.parse().map_err(|_| "expected a time such as 30s, 1500ms or 2m".to_owned())?;
    let millis = number.checked_mul(millis_per_unit).filter(|&ms| ms > 0 && ms <= 24 * 3_600_000);
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| "expected more than zero and at most a day".to_owned())
}

/// How long each stage took, in the order in which they ended.
#[derive(Debug)]
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

    /// The stage `name` ends now; the next begins.
    pub fn lap(&mut self, name: impl Into<String>) {
        let now = Instant::now();
        self.record(name, now - self.last);
        self.last = now;
    }

    /// Notes a stage that was measured elsewhere, for instance one that ran beside others.
    pub fn record(&mut self, name: impl Into<String>, time: Duration) {
        self.stages.push((name.into(), u64::try_from(time.as_micros()).unwrap_or(u64::MAX)));
    }

    /// All stages so far, and `total` since the start.
    pub fn finish(mut self) -> Vec<(String, u64)> {
        let total = self.start.elapsed();
        self.record("total", total);
        self.stages
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("30", 30_000)]
    #[case("30s", 30_000)]
    #[case("1500ms", 1_500)]
    #[case("2m", 120_000)]
    fn times_are_parsed(#[case] text: &str, #[case] millis: u64) {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
    }

    #[rstest]
    fn odd_times_are_refused(
        #[values("", "0", "s", "-1", "1h", "1.5s", "99999999999999999999", "2000m")] text: &str,
    ) {
        assert!(parse_duration(text).is_err());
    }

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
