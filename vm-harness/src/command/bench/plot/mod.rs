//! The plots of a report, as SVG.

mod axis;
mod distribution;
mod growth;
mod svg;

pub(super) use distribution::distribution;
pub(super) use growth::growth;

/// The width of both plots, in SVG's units.
const WIDTH: f64 = 800.0;
const BLUE: &str = "#1f5fa8";
const ORANGE: &str = "#c9600e";
const GREY: &str = "#666666";
