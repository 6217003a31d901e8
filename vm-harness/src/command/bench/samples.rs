//! The values of one measurement, in the order in which they were taken.

use std::time::Duration;

use serde::Serialize;

/// Values of one unit: microseconds, or KiB per second.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Samples(Vec<u64>);

impl Samples {
    pub(super) fn add(&mut self, time: Duration) {
        self.push(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn push(&mut self, value: u64) {
        self.0.push(value);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn values(&self) -> &[u64] {
        &self.0
    }

    /// Returns the value that `share` of a hundred values are below; 0 without values.
    pub(super) fn percentile(&self, share: usize) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        sorted.get((sorted.len() * share / 100).min(last)).copied().unwrap_or_default()
    }

    pub(super) fn median(&self) -> u64 {
        self.percentile(50)
    }

    /// Returns these times without those of the same rounds of `part`.
    pub(super) fn without(&self, part: &Self) -> Self {
        let pairs = self.0.iter().zip(&part.0);
        pairs.map(|(whole, part)| whole.saturating_sub(*part)).collect()
    }

    /// Returns these times without a time that was measured apart from them.
    pub(super) fn without_time(&self, part: u64) -> Self {
        self.0.iter().map(|whole| whole.saturating_sub(part)).collect()
    }

    /// Returns the times of a part, where each of these is for so many parts.
    pub(super) fn per(&self, parts: usize) -> Self {
        let parts = u64::try_from(parts.max(1)).unwrap_or(u64::MAX);
        self.0.iter().map(|whole| whole / parts).collect()
    }
}

impl FromIterator<u64> for Samples {
    fn from_iter<T: IntoIterator<Item = u64>>(values: T) -> Self {
        Self(values.into_iter().collect())
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<T: IntoIterator<Item = Duration>>(times: T) -> Self {
        let mut this = Self::default();
        times.into_iter().for_each(|time| this.add(time));
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_taken() {
        let samples: Samples = (1..=10).rev().collect();
        let at = |share| samples.percentile(share);
        assert_eq!((at(0), at(50), at(90), at(100)), (1, 6, 10, 10));
        assert_eq!(Samples::default().median(), 0);
    }

    #[test]
    fn parts_are_taken_off_round_by_round() {
        let whole: Samples = [10, 20, 3].into_iter().collect();
        let part: Samples = [1, 2, 5].into_iter().collect();
        assert_eq!(whole.without(&part).values(), [9, 18, 0]);
        assert_eq!(whole.without_time(4).values(), [6, 16, 0]);
        assert_eq!(whole.per(2).values(), [5, 10, 1]);
    }
}
