//! The report as Markdown.

use std::fmt::Write as _;

use super::{
    report::Report,
    row::{Goal, Row, Series, Unit, Verdict},
};

/// Returns the report as Markdown.
pub(super) fn markdown(report: &Report) -> String {
    let mut text = String::from("| | |\n|---|---|\n");
    for (name, value) in report.machine.pairs() {
        // A String can always be written to.
        let _ = writeln!(text, "| {name} | {value} |");
    }
    let _ = writeln!(
        text,
        "\nMedian / 90th percentile of {} rounds; milliseconds, unless a row says otherwise.",
        report.rounds
    );
    for section in report.sections.iter().filter(|section| !section.rows.is_empty()) {
        let _ = writeln!(text, "\n### {}\n", section.title);
        text.push_str(&table(&section.rows));
    }
    text
}

/// Returns the text of a cell; empty if the row has none.
type Cell = fn(&Row) -> String;

/// Returns a table with only the columns that a row has a value for.
pub(super) fn table(rows: &[Row]) -> String {
    let columns: [(&str, Cell); 6] = [
        ("measure", |row| row.measure.clone()),
        ("ours", |row| row.ours.as_ref().map_or_else(String::new, series)),
        ("beside", |row| row.beside.as_ref().map_or_else(String::new, named)),
        ("figure", figure),
        ("goal", goal),
        ("", |row| verdict(row).to_owned()),
    ];
    let used: Vec<_> = columns
        .into_iter()
        .filter(|(_, cell)| rows.iter().any(|row| !cell(row).is_empty()))
        .collect();
    let names: Vec<_> = used.iter().map(|(name, _)| *name).collect();
    let mut text = format!("| {} |\n|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for row in rows {
        let cells: Vec<_> = used.iter().map(|(_, cell)| cell(row)).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

fn series(series: &Series) -> String {
    let (unit, scale) = match series.unit {
        Unit::Microseconds => ("", 1000.0),
        Unit::KibibytesPerSecond => (" MiB/s", 1024.0),
    };
    let at = |share| number(series.samples.percentile(share) as f64 / scale);
    format!("{} / {}{unit}", at(50), at(90))
}

fn named(beside: &Series) -> String {
    format!("{}: {}", beside.name, series(beside))
}

fn figure(row: &Row) -> String {
    match &row.figure {
        None => String::new(),
        // A number that was measured once.
        Some(figure) if row.ours.is_none() => {
            format!("{} {}", figure.median, figure.unit).trim_end().to_owned()
        }
        Some(figure) if figure.unit.is_empty() => {
            format!("**{:.2}** / {:.2}", figure.median, figure.p90)
        }
        Some(figure) => {
            format!("**{}** / {} {}", number(figure.median), number(figure.p90), figure.unit)
        }
    }
}

fn goal(row: &Row) -> String {
    match row.goal {
        None => String::new(),
        Some(Goal::AtMost(bound)) => format!("≤ {bound}"),
        Some(Goal::AtLeast(bound)) => format!("≥ {bound}"),
    }
}

fn verdict(row: &Row) -> &'static str {
    match row.verdict() {
        Verdict::Met => "met",
        Verdict::Missed => "missed",
        Verdict::Told => "",
    }
}

/// Returns a number with as many decimals as it needs to be compared.
fn number(value: f64) -> String {
    if value.abs() < 9.995 { format!("{value:.2}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::bench::samples::Samples;

    #[test]
    fn table_has_only_the_columns_that_are_used() {
        let samples = |values: &[u64]| values.iter().copied().collect::<Samples>();
        let compared = Row::ratio(
            "m",
            Series::times("ours", samples(&[2000])),
            Series::times("floor", samples(&[10_000])),
        );
        assert_eq!(
            table(&[compared.goal(Goal::AtMost(0.1)), Row::times("n", samples(&[1234]))]),
            "| measure | ours | beside | figure | goal |  |\n|---|---|---|---|---|---|\n\
             | m | 2.00 / 2.00 | floor: 10.0 / 10.0 | **0.20** / 0.20 | ≤ 0.1 | missed |\n\
             | n | 1.23 / 1.23 |  |  |  |  |\n"
        );
        assert_eq!(
            table(&[Row::number("text", 63.0, "bytes")]),
            "| measure | figure |\n|---|---|\n| text | 63 bytes |\n"
        );
    }

    #[test]
    fn rates_have_their_unit() {
        let rates = Series::rates("container", [2048].into_iter().collect());
        assert_eq!(series(&rates), "2.00 / 2.00 MiB/s");
    }
}
