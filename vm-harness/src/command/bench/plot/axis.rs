//! An axis from zero: its end, its ticks, and where a value is.

/// A linear axis.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    /// The value at its end.
    end: f64,
    /// The distance of its ticks, as a value.
    step: f64,
    /// Where zero and the end are in the picture.
    places: (f64, f64),
}

impl Axis {
    /// Makes an axis for values up to `largest`.
    pub(super) fn new(largest: f64, places: (f64, f64)) -> Self {
        let largest = largest.max(1e-9);
        let tenths = 10_f64.powf((largest / 4.0).log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * tenths);
        let step = steps.into_iter().find(|step| largest / step <= 6.0).unwrap_or(largest);
        Self { end: (largest / step).ceil() * step, step, places }
    }

    /// Ends the axis at the largest value, in place of the tick beyond it.
    pub(super) fn ending_at(self, end: f64) -> Self {
        Self { end, ..self }
    }

    /// Returns where a value is. One above the end is at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let (zero, end) = self.places;
        zero + (end - zero) * (value / self.end).min(1.0)
    }

    /// Returns the values that have a tick.
    pub(super) fn ticks(&self) -> impl Iterator<Item = f64> {
        let Self { end, step, .. } = *self;
        (0..).map(move |index| f64::from(index) * step).take_while(move |tick| *tick <= end * 1.001)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_beyond_the_largest_value() {
        let ticks = |largest| Axis::new(largest, (0.0, 1.0)).ticks().collect::<Vec<_>>();
        assert_eq!(ticks(43.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(ticks(256.0), [0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]);
        assert_eq!(ticks(0.9).len(), 6);
        let exact = Axis::new(256.0, (0.0, 1.0)).ending_at(256.0);
        assert_eq!((exact.ticks().last(), exact.at(256.0)), (Some(250.0), 1.0));
    }

    #[test]
    fn values_are_placed_between_the_ends() {
        let axis = Axis::new(50.0, (100.0, 0.0));
        assert_eq!([0.0, 25.0, 50.0, 99.0].map(|value| axis.at(value)), [100.0, 50.0, 0.0, 0.0]);
    }
}
