//! The report of `check`: one row for each finding, and what to do about it if it is not ok.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::table;
use crate::{Error, exit_status::ExitStatus, sanitize::sanitize};

/// How many characters of a container's ID the table shows.
const SHORT_ID: usize = 12;

/// Everything that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckReport {
    /// The sandbox's full ID; absent if no sandbox was checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// In the order in which a hot-plug would encounter them.
    pub checks: Vec<Finding>,
}

/// The status of a finding.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// A hot-plug works, but there is something to know.
    Warning,
    /// A hot-plug would fail.
    Problem,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// A stable name for programs.
    pub name: String,
    /// Its status.
    pub status: Status,
    /// What was found, for people.
    pub message: String,
    /// What to do about it, in lines that are separated by `\n`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The exit status that a hot-plug would end with because of it; 0 if it would continue.
    pub exit_code: u8,
    /// With `--all`, the full ID of the sandbox that the finding is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The container's full ID, if the finding is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The stable name of the kernel's capability, if the finding is about one that is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
}

impl Finding {
    pub(crate) fn ok(name: &str, message: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            status: Status::Ok,
            message: sanitize(&message.into()),
            remedy: None,
            exit_code: ExitStatus::Success.code(),
            sandbox: None,
            container: None,
            capability: None,
        }
    }

    pub(crate) fn warning(name: &str, message: impl Into<String>, remedy: &[&str]) -> Self {
        Self { status: Status::Warning, ..Self::ok(name, message) }.with_remedy(remedy)
    }

    /// A finding that would make a hot-plug fail with `error`.
    pub(crate) fn problem(name: &str, error: &Error) -> Self {
        let class = error.class();
        let (status, exit_code) = (Status::Problem, class.exit_status.code());
        Self { status, exit_code, ..Self::ok(name, error.message()) }
            .with_remedy(class.remedy.as_slice())
    }

    /// Adds lines to the remedy.
    pub(crate) fn with_remedy(mut self, lines: &[&str]) -> Self {
        let lines: Vec<_> =
            self.remedy.iter().map(String::as_str).chain(lines.iter().copied()).collect();
        self.remedy = (!lines.is_empty()).then(|| lines.join("\n"));
        self
    }

    /// Makes it a finding about the sandbox `id`, one of several.
    pub(crate) fn of_sandbox(self, id: &str) -> Self {
        Self { sandbox: Some(id.to_owned()), ..self }
    }

    /// Makes it a finding about the container `id`.
    pub(crate) fn of_container(self, id: &str) -> Self {
        Self { container: Some(id.to_owned()), ..self }
    }

    /// Makes it a finding about the missing capability `name` of the guest's kernel.
    pub(crate) fn of_capability(self, name: &str) -> Self {
        Self { capability: Some(sanitize(name)), ..self }
    }

    /// The name in the table: that of a container includes the start of its ID, and with `--all`
    /// that of the sandbox comes first.
    fn label(&self) -> String {
        let short = |id: &String| sanitize(&id.chars().take(SHORT_ID).collect::<String>());
        let (sandbox, container) = (self.sandbox.as_ref(), self.container.as_ref());
        let words = [sandbox.map(short), Some(self.name.clone()), container.map(short)];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

impl CheckReport {
    /// The worst status of all findings.
    pub fn status(&self) -> Status {
        self.checks.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok)
    }

    /// The exit code of the first problem, which a hot-plug would encounter first; 0 if there is
    /// none.
    pub fn exit_code(&self) -> u8 {
        let problem = self.checks.iter().find(|finding| finding.status == Status::Problem);
        problem.map_or(0, |finding| finding.exit_code)
    }
}

/// Formats `report` for people.
pub(crate) fn lines(report: &CheckReport) -> String {
    let text = |status| match status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Problem => "problem",
    };
    let row = |finding: &Finding| {
        [text(finding.status).to_owned(), finding.label(), finding.message.clone()]
    };
    let rows = table::table(report.checks.iter().map(row).collect());
    let mut lines = Vec::new();
    for (row, finding) in rows.into_iter().zip(&report.checks) {
        lines.push(row);
        let remedy = finding.remedy.iter().flat_map(|remedy| remedy.lines());
        lines.extend(remedy.map(|line| format!("           {line}")));
    }
    let count = |status| report.checks.iter().filter(|finding| finding.status == status).count();
    let (problems, warnings) = (count(Status::Problem), count(Status::Warning));
    lines.push(match (problems, warnings) {
        (0, 0) => "no problems found".to_owned(),
        (0, _) => format!("volumes can be plugged; warnings: {warnings}"),
        // Where several sandboxes are checked, there may be one without a problem.
        _ if report.checks.iter().any(|finding| finding.sandbox.is_some()) => {
            format!("problems: {problems}, warnings: {warnings}")
        }
        _ => format!("no volume can be plugged; problems: {problems}, warnings: {warnings}"),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(checks: Vec<Finding>) -> CheckReport {
        CheckReport { sandbox: None, checks }
    }

    #[test]
    fn a_finding_about_one_of_several_sandboxes_begins_with_it() {
        let id = "0123456789abcdef";
        let finding = Finding::problem("qmp", &Error::NoController).of_sandbox(id);
        let text = lines(&report(vec![Finding::ok("kernel", "6.12"), finding]));
        assert!(text.contains("problem  0123456789ab qmp  the VM has no"), "{text}");
        assert!(text.ends_with("\nproblems: 1, warnings: 0"), "{text}");
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_problem_and_the_status_is_the_worst() {
        let warning = Finding::warning("lvm", "x", &["do"]);
        assert_eq!(report(Vec::new()).status(), Status::Ok);
        let warned = report(vec![Finding::ok("a", "b"), warning.clone()]);
        assert_eq!((warned.exit_code(), warned.status()), (0, Status::Warning));
        let (first, second) = (
            Finding::problem("a", &Error::NoController),
            Finding::problem("b", &Error::SandboxNotNamed),
        );
        let failed = report(vec![warning, first, second]);
        assert_eq!((failed.exit_code(), failed.status()), (10, Status::Problem));
    }

    #[test]
    fn the_json_form_is_stable() {
        let checks = vec![
            Finding::ok("a", "b"),
            Finding::warning("c", "d\u{1b}", &["e", "f"]),
            Finding::ok("container", "g").of_container("0123456789abcdef"),
        ];
        let report = report(checks);
        let expected = concat!(
            r#"{"checks":[{"name":"a","status":"ok","message":"b","exit_code":0},"#,
            r#"{"name":"c","status":"warning","message":"d\\u{1b}","remedy":"e\nf","exit_code":0},"#,
            r#"{"name":"container","status":"ok","message":"g","exit_code":0,"container":"0123456789abcdef"}]}"#
        );
        assert_eq!(serde_json::to_string(&report).unwrap(), expected);
        assert_eq!(serde_json::from_str::<CheckReport>(expected).unwrap(), report);
    }

    #[test]
    fn a_remedy_of_the_error_comes_before_further_lines() {
        let finding =
            Finding::problem("sandbox", &Error::SandboxNotNamed).with_remedy(&["or this"]);
        let expected = "name the sandbox with --sandbox\nor this";
        assert_eq!(finding.remedy.as_deref(), Some(expected));
        assert_eq!(Finding::ok("a", "b").with_remedy(&[]).remedy, None);
    }

    #[test]
    fn the_table_for_people_shows_the_remedies() {
        let text = lines(&report(vec![
            Finding::ok("a", "fine"),
            Finding::warning("bcd", "hm", &["do this", "and that"]),
        ]));
        let expected = "ok       a    fine\nwarning  bcd  hm\n           do this\n           and that\nvolumes can be plugged; warnings: 1";
        assert_eq!(text, expected);
        let text = lines(&report(vec![Finding::ok("a", "fine")]));
        assert_eq!(text, "ok  a  fine\nno problems found");
        let container = Finding::problem("container", &Error::NoController);
        let text = lines(&report(vec![container.of_container("0123456789abcdef")]));
        assert!(text.starts_with("problem  container 0123456789ab  "), "{text}");
        assert!(text.ends_with("no volume can be plugged; problems: 1, warnings: 0"), "{text}");
    }
}
