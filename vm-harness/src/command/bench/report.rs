//! The report of a run: what was measured, on which machine, as JSON with all raw values, as
//! Markdown and as plots.

use std::{fs, path::Path};

use serde_json::{Value, json};
use vm_harness::Error;

use super::{
    machine::MachineFacts,
    markdown::markdown,
    plot,
    row::{Row, Series, Verdict},
    scale::ScaleTimes,
};

/// The version of the JSON document's structure.
const SCHEMA: u32 = 1;
const DISTRIBUTION: &str = "figures-distribution.svg";
const GROWTH: &str = "figures-growth.svg";
/// The lines of the page in `docs` between which the report is.
const BEGIN: &str = "<!-- Written by ci/bench --docs: begin -->\n";
const END: &str = "<!-- Written by ci/bench --docs: end -->\n";

/// Rows that belong together.
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) rows: Vec<Row>,
}

/// A run.
pub(super) struct Report {
    pub(super) machine: MachineFacts,
    pub(super) rounds: usize,
    pub(super) sections: Vec<Section>,
    /// What the plot of the distribution shows: its panels with their series.
    pub(super) panels: Vec<(&'static str, Vec<Series>)>,
    pub(super) scale: ScaleTimes,
}

impl Report {
    /// Returns the rows whose goal is missed.
    pub(super) fn missed(&self) -> impl Iterator<Item = &Row> {
        let rows = self.sections.iter().flat_map(|section| &section.rows);
        rows.filter(|row| row.verdict() == Verdict::Missed)
    }

    /// Returns it as Markdown.
    pub(super) fn markdown(&self) -> String {
        markdown(self)
    }

    /// Writes all files to `directory`.
    pub(super) fn write(&self, directory: &Path) -> Result<(), Error> {
        fs::create_dir_all(directory).map_err(file("make", directory))?;
        let json = format!("{:#}\n", self.json());
        write(&directory.join("report.json"), &json)?;
        write(&directory.join("report.md"), &self.markdown())?;
        self.write_plots(directory)
    }

    /// Writes the plots to the pictures of `docs`, and the tables to its page.
    pub(super) fn write_docs(&self, docs: &Path) -> Result<(), Error> {
        self.write_plots(&docs.join("pictures"))?;
        let page = docs.join("figures.md");
        let text = fs::read_to_string(&page).map_err(file("read", &page))?;
        let replaced = between(&text, &self.markdown()).ok_or_else(|| Error::Missing {
            what: format!("the line {:?} in {}", BEGIN.trim_end(), page.display()),
            remedy: "restore the page from the repository",
        })?;
        write(&page, &replaced)
    }

    fn write_plots(&self, directory: &Path) -> Result<(), Error> {
        write(&directory.join(DISTRIBUTION), &plot::distribution(&self.panels))?;
        write(&directory.join(GROWTH), &plot::growth(&self.scale))
    }

    fn json(&self) -> Value {
        let sections = self.sections.iter().map(|section| {
            let rows: Vec<_> = section.rows.iter().map(row).collect();
            json!({ "title": section.title, "rows": rows })
        });
        json!({
            "schema": SCHEMA,
            "machine": self.machine,
            "rounds": self.rounds,
            "sections": sections.collect::<Vec<_>>(),
            "by_number_of_volumes_us": {
                "plug": self.scale.plugs,
                "unplug": self.scale.unplugs,
            },
        })
    }
}

fn row(row: &Row) -> Value {
    let series = |series: &Series| {
        let at = |share| series.samples.percentile(share);
        json!({
            "name": series.name, "unit": series.unit, "minimum": at(0), "median": at(50),
            "p90": at(90), "samples": series.samples,
        })
    };
    json!({
        "measure": row.measure,
        "ours": row.ours.as_ref().map(series),
        "beside": row.beside.as_ref().map(series),
        "figure": row.figure,
        "goal": row.goal,
        "verdict": row.verdict(),
    })
}

/// Returns the page with `text` between its two lines.
fn between(page: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{text}\n{END}{after}"))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(file("write", path))
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_keeps_what_is_around_the_report() {
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        let expected = format!("a\n{BEGIN}\nnew\n\n{END}b\n");
        assert_eq!(between(&page, "new\n"), Some(expected));
        assert_eq!(between("a\n", "new"), None);
    }
}
