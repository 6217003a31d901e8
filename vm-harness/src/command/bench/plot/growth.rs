//! The time of a plug and of an unplug over the number of attached volumes: a dot for each, and the
//! median of those around it as a line.

use super::{
    BLUE, GREY, ORANGE, WIDTH,
    axis::Axis,
    svg::{Anchor, Svg},
};
use crate::command::bench::{samples::Samples, scale::ScaleTimes};

const HEIGHT: f64 = 380.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = WIDTH - 30.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = HEIGHT - 50.0;
/// The line at a place is the median of so many places before and after it.
const AROUND: usize = 8;

/// Returns the picture.
pub(in crate::command::bench) fn growth(times: &ScaleTimes) -> String {
    let all = || times.plugs.iter().chain(&times.unplugs);
    let volumes = all().map(|pass| pass.values().len()).max().unwrap_or_default();
    let largest = all().map(|pass| pass.percentile(98)).max().unwrap_or_default();
    let x = Axis::new(volumes as f64, (LEFT, RIGHT)).ending_at(volumes.max(1) as f64);
    let y = Axis::new(largest as f64 / 1000.0, (BOTTOM, TOP));
    let mut svg = Svg::new(WIDTH, HEIGHT);
    for tick in y.ticks() {
        svg.line((LEFT, y.at(tick)), (RIGHT, y.at(tick)), "#dddddd", 1.0);
        svg.words((LEFT - 8.0, y.at(tick) + 4.0), Anchor::End, &format!("{tick}"));
    }
    svg.words((LEFT - 8.0, TOP - 14.0), Anchor::End, "ms");
    for tick in x.ticks() {
        svg.line((x.at(tick), BOTTOM), (x.at(tick), BOTTOM + 5.0), GREY, 1.0);
        svg.words((x.at(tick), BOTTOM + 20.0), Anchor::Middle, &format!("{tick}"));
    }
    let middle = f64::midpoint(LEFT, RIGHT);
    svg.words((middle, BOTTOM + 40.0), Anchor::Middle, "attached volumes");
    let series = [("hot-unplug", ORANGE, &times.unplugs), ("hot-plug", BLUE, &times.plugs)];
    for (index, (name, color, passes)) in series.into_iter().enumerate() {
        let place =
            |(index, value): (usize, u64)| (x.at(index as f64 + 1.0), y.at(value as f64 / 1000.0));
        let values = passes.iter().flat_map(|pass| pass.values().iter().copied().enumerate());
        svg.dots(color, values.map(place));
        svg.path(color, medians(passes).into_iter().enumerate().map(place));
        let at = LEFT + 20.0 + 120.0 * index as f64;
        svg.line((at, TOP - 18.0), (at + 24.0, TOP - 18.0), color, 2.0);
        svg.words((at + 30.0, TOP - 14.0), Anchor::Start, name);
    }
    svg.end()
}

/// Returns the median around each place, of all passes.
fn medians(passes: &[Samples]) -> Vec<u64> {
    let places = passes.iter().map(|pass| pass.values().len()).min().unwrap_or_default();
    let around = |place: usize| {
        let range = place.saturating_sub(AROUND)..(place + AROUND + 1).min(places);
        let values = passes.iter().flat_map(|pass| pass.values()[range.clone()].to_vec());
        values.collect::<Samples>().median()
    };
    (0..places).map(around).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_a_dot_and_outliers_do_not_move_the_line() {
        let mut plugs: Vec<u64> = vec![20_000; 64];
        plugs[7] = 900_000;
        let plugs = vec![plugs.into_iter().collect::<Samples>()];
        assert_eq!(medians(&plugs), [20_000; 64]);
        let unplugs = plugs.clone();
        let svg = growth(&ScaleTimes { plugs, unplugs });
        assert_eq!(svg.matches("<circle").count(), 128);
        assert!(!svg.contains("NaN"), "{svg}");
    }
}
