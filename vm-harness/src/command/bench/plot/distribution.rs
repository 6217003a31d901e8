//! All values of some series, above each other: a dot for each value, a bar from the 10th to the
//! 90th percentile, a line at the median.

use super::{
    GREY, ORANGE, WIDTH,
    axis::Axis,
    svg::{Anchor, Svg},
};
use crate::command::bench::row::Series;

const LEFT: f64 = 250.0;
const RIGHT: f64 = WIDTH - 70.0;
const ROW: f64 = 34.0;
/// The height of a panel without its rows.
const AROUND: f64 = 74.0;

/// Returns the picture: one panel for each title, with an axis of its own.
pub(in crate::command::bench) fn distribution(panels: &[(&str, Vec<Series>)]) -> String {
    let height = |series: &[Series]| AROUND + ROW * series.len() as f64;
    let all = panels.iter().map(|(_, series)| height(series)).sum();
    let mut svg = Svg::new(WIDTH, all);
    let mut top = 0.0;
    for (title, series) in panels {
        panel(&mut svg, top, title, series);
        top += height(series);
    }
    svg.end()
}

fn panel(svg: &mut Svg, top: f64, title: &str, series: &[Series]) {
    let largest = series.iter().map(|series| series.samples.percentile(95)).max();
    let axis = Axis::new(milliseconds(largest.unwrap_or_default()), (LEFT, RIGHT));
    let bottom = top + AROUND - 34.0 + ROW * series.len() as f64;
    svg.words((20.0, top + 24.0), Anchor::Start, title);
    for tick in axis.ticks() {
        let x = axis.at(tick);
        svg.line((x, top + 34.0), (x, bottom), "#dddddd", 1.0);
        svg.words((x, bottom + 16.0), Anchor::Middle, &format!("{tick}"));
    }
    svg.words((RIGHT + 20.0, bottom + 16.0), Anchor::Start, "ms");
    for (index, series) in series.iter().enumerate() {
        let middle = top + 34.0 + ROW * (index as f64 + 0.5);
        let samples = &series.samples;
        let at = |value: u64| axis.at(milliseconds(value));
        svg.words((LEFT - 12.0, middle + 4.0), Anchor::End, &series.name);
        let ends = [10, 90].map(|share| (at(samples.percentile(share)), middle));
        svg.line(ends[0], ends[1], "#bbd3ec", 12.0);
        // Spread, so that equal values are seen.
        let places = samples.values().iter().enumerate();
        let place =
            |(index, &value): (usize, &u64)| (at(value), middle + ((index * 7) % 13) as f64 - 6.0);
        svg.dots(GREY, places.map(place));
        let median = at(samples.median());
        svg.line((median, middle - 11.0), (median, middle + 11.0), ORANGE, 2.5);
        let text = format!("{:.1}", milliseconds(samples.median()));
        svg.words((median, middle - 13.0), Anchor::Middle, &text);
    }
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_a_dot_and_names_are_escaped() {
        let series = Series::times("a < b", (1..=50).map(|value| value * 1000).collect());
        let svg = distribution(&[("plug", vec![series.clone()]), ("unplug", vec![series])]);
        assert_eq!(svg.matches("<circle").count(), 100);
        assert!(svg.contains(">a &lt; b</text>") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(!svg.contains("NaN"), "{svg}");
    }
}
