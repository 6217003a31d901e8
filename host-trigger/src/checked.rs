//! What `check` prints: each thing that was looked at, how it is, and the way out where it is not
//! well; as one JSON object or a table.

use serde::{Deserialize, Serialize};

use crate::{Error, output::Timings, printable::printable, table};

/// All that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// [`SCHEMA`](crate::output::SCHEMA).
    pub schema: u32,
    /// `check`
    pub command: String,
    /// The worst of all.
    pub result: Status,
    /// The sandbox, where one was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// In the order in which a hot-plug would meet them.
    pub checks: Vec<Finding>,
    /// How long the stages took.
    pub timings_us: Timings,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// A hot-plug works, and there is something to know.
    Warning,
    /// A hot-plug would fail.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable, for programs.
    pub name: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it, in lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub way_out: Vec<String>,
    /// The exit status that a hot-plug would have for it; 0 where it would go on.
    pub exit_code: u8,
}

impl Finding {
    pub(crate) fn ok(name: &str, found: impl Into<String>) -> Self {
        let found = printable(&found.into());
        Self { name: name.to_owned(), status: Status::Ok, found, way_out: Vec::new(), exit_code: 0 }
    }

    pub(crate) fn warning(name: &str, found: impl Into<String>, way_out: &[&str]) -> Self {
        let way_out = way_out.iter().map(|&line| line.to_owned()).collect();
        Self { status: Status::Warning, way_out, ..Self::ok(name, found) }
    }

    /// What a hot-plug would end with.
    pub(crate) fn problem(name: &str, error: &Error) -> Self {
        let class = error.class();
        let way_out = class.hint.iter().map(|&hint| hint.to_owned()).collect();
        let (status, exit_code) = (Status::Problem, class.exit_code);
        Self { status, way_out, exit_code, ..Self::ok(name, error.message()) }
    }

    pub(crate) fn with_way_out(mut self, more: &[&str]) -> Self {
        self.way_out.extend(more.iter().map(|&line| line.to_owned()));
        self
    }
}

impl Checked {
    /// That of the first problem, which a hot-plug would have met first; 0 where there is none.
    pub fn exit_code(&self) -> u8 {
        let problem = self.checks.iter().find(|finding| finding.status == Status::Problem);
        problem.map_or(0, |finding| finding.exit_code)
    }
}

/// For people.
pub(crate) fn lines(checked: &Checked) -> String {
    let text = |status| match status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Problem => "problem",
    };
    let row = |finding: &Finding| {
        [text(finding.status).to_owned(), finding.name.clone(), finding.found.clone()]
    };
    let rows = table::table(checked.checks.iter().map(row).collect());
    let mut lines = Vec::new();
    for (row, finding) in rows.into_iter().zip(&checked.checks) {
        lines.push(row);
        lines.extend(finding.way_out.iter().map(|line| format!("           {line}")));
    }
    let count = |status| checked.checks.iter().filter(|finding| finding.status == status).count();
    let (problems, warnings) = (count(Status::Problem), count(Status::Warning));
    lines.push(match (problems, warnings) {
        (0, 0) => "all is well".to_owned(),
        (0, _) => format!("volumes can be plugged; warnings: {warnings}"),
        _ => format!("no volume can be plugged; problems: {problems}, warnings: {warnings}"),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(checks: Vec<Finding>) -> Checked {
        let result = checks.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
        let (schema, command) = (1, "check".to_owned());
        Checked { schema, command, result, sandbox: None, checks, timings_us: Timings(Vec::new()) }
    }

    #[test]
    fn the_exit_status_is_that_of_the_first_problem() {
        let warning = Finding::warning("lvm", "x", &["do"]);
        assert_eq!(checked(vec![warning.clone()]).exit_code(), 0);
        let (first, second) = (
            Finding::problem("a", &Error::NoController),
            Finding::problem("b", &Error::NothingNamed),
        );
        assert_eq!(checked(vec![warning, first, second]).exit_code(), 10);
    }

    #[test]
    fn the_json_form_is_stable() {
        let checked =
            checked(vec![Finding::ok("a", "b"), Finding::warning("c", "d\u{1b}", &["e"])]);
        let expected = concat!(
            r#"{"schema":1,"command":"check","result":"warning","checks":[{"name":"a","status":"ok","found":"b","exit_code":0},"#,
            r#"{"name":"c","status":"warning","found":"d\\u{1b}","way_out":["e"],"exit_code":0}],"timings_us":{}}"#
        );
        assert_eq!(serde_json::to_string(&checked).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Checked>(expected).unwrap(), checked);
    }

    #[test]
    fn people_read_a_table_with_the_ways_out() {
        let text = lines(&checked(vec![
            Finding::ok("a", "fine"),
            Finding::warning("bcd", "hm", &["do this", "and that"]),
        ]));
        let expected = "ok       a    fine\nwarning  bcd  hm\n           do this\n           and that\nvolumes can be plugged; warnings: 1";
        assert_eq!(text, expected);
        assert_eq!(lines(&checked(vec![Finding::ok("a", "fine")])), "ok  a  fine\nall is well");
    }
}
