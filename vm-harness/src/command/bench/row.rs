//! One row of the report: a measurement, what it is compared with, and the goal.

use serde::Serialize;

use super::samples::Samples;

/// Named values of one unit.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) samples: Samples,
}

/// The unit of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Microseconds,
    KibibytesPerSecond,
}

/// What a row is judged by: at the median and at the 90th percentile.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figure {
    pub(super) median: f64,
    pub(super) p90: f64,
    /// Empty for a ratio.
    pub(super) unit: &'static str,
}

/// The bound of a figure at the median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// Whether the goal is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Met,
    Missed,
    /// The row has no goal on this machine.
    Told,
}

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) measure: String,
    pub(super) ours: Option<Series>,
    pub(super) beside: Option<Series>,
    pub(super) figure: Option<Figure>,
    pub(super) goal: Option<Goal>,
}

impl Series {
    /// Returns a series of times.
    pub(super) fn times(name: impl Into<String>, samples: Samples) -> Self {
        Self { name: name.into(), unit: Unit::Microseconds, samples }
    }

    /// Returns a series of rates.
    pub(super) fn rates(name: impl Into<String>, samples: Samples) -> Self {
        Self { name: name.into(), unit: Unit::KibibytesPerSecond, samples }
    }
}

impl Row {
    /// Compares by the ratio.
    pub(super) fn ratio(measure: impl Into<String>, ours: Series, beside: Series) -> Self {
        let at = |share: usize| {
            let beside = beside.samples.percentile(share).max(1);
            ours.samples.percentile(share) as f64 / beside as f64
        };
        let figure = Figure { median: at(50), p90: at(90), unit: "" };
        Self {
            measure: measure.into(),
            figure: Some(figure),
            ours: Some(ours),
            beside: Some(beside),
            goal: None,
        }
    }

    /// Compares by the difference, in milliseconds.
    pub(super) fn difference(measure: impl Into<String>, ours: Series, beside: Series) -> Self {
        let at = |share: usize| {
            let [ours, beside] = [&ours, &beside].map(|series| series.samples.percentile(share));
            (ours as f64 - beside as f64) / 1000.0
        };
        let figure = Figure { median: at(50), p90: at(90), unit: "ms" };
        Self { figure: Some(figure), ..Self::ratio(measure, ours, beside) }
    }

    /// Tells times alone.
    pub(super) fn times(measure: impl Into<String>, samples: Samples) -> Self {
        let measure = measure.into();
        let ours = Some(Series::times(measure.clone(), samples));
        Self { measure, ours, beside: None, figure: None, goal: None }
    }

    /// Tells one number.
    pub(super) fn number(measure: impl Into<String>, value: f64, unit: &'static str) -> Self {
        let figure = Some(Figure { median: value, p90: value, unit });
        Self { measure: measure.into(), ours: None, beside: None, figure, goal: None }
    }

    /// Sets the goal.
    pub(super) fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// Sets the goal if it is one on this machine.
    pub(super) fn goal_if(self, is_one: bool, goal: Goal) -> Self {
        Self { goal: is_one.then_some(goal), ..self }
    }

    pub(super) fn verdict(&self) -> Verdict {
        match (&self.figure, self.goal) {
            (Some(figure), Some(goal)) if goal.is_met(figure.median) => Verdict::Met,
            (_, Some(_)) => Verdict::Missed,
            (_, None) => Verdict::Told,
        }
    }
}

impl Goal {
    pub(super) fn bound(self) -> f64 {
        match self {
            Self::AtMost(bound) | Self::AtLeast(bound) => bound,
        }
    }

    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: &[u64], beside: &[u64]) -> Row {
        let series = |values: &[u64]| Series::times("s", values.iter().copied().collect());
        Row::ratio("m", series(ours), series(beside))
    }

    #[test]
    fn ratio_is_that_of_the_medians_and_of_the_90th_percentiles() {
        let row = row(&[10, 10, 40], &[10, 20, 20]);
        let figure = row.figure.as_ref().unwrap();
        assert_eq!((figure.median, figure.p90), (0.5, 2.0));
        assert_eq!(row.verdict(), Verdict::Told);
        assert_eq!(row.clone().goal(Goal::AtMost(0.5)).verdict(), Verdict::Met);
        assert_eq!(row.clone().goal(Goal::AtMost(0.49)).verdict(), Verdict::Missed);
        assert_eq!(row.clone().goal(Goal::AtLeast(0.51)).verdict(), Verdict::Missed);
        assert_eq!(row.goal_if(false, Goal::AtMost(0.1)).verdict(), Verdict::Told);
    }

    #[test]
    fn difference_is_in_milliseconds() {
        let series = |value: u64| Series::times("s", [value].into_iter().collect());
        let figure = Row::difference("m", series(3500), series(1000)).figure.unwrap();
        assert_eq!((figure.median, figure.unit), (2.5, "ms"));
    }
}
