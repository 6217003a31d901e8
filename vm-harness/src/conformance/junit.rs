//! The report as JUnit XML, which CI systems read: a test suite for each mode, `skipped` for checks
//! that do not apply.

use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::{ModeReport, Outcome, Report, Verdict};

impl Report {
    /// Returns the XML document.
    pub fn junit(&self) -> String {
        let mut document = quick_junit::Report::new("conformance");
        document.add_test_suites(self.modes.iter().map(suite));
        // Writing to a string does not fail.
        document.to_string().unwrap_or_default()
    }
}

fn suite(mode: &ModeReport) -> TestSuite {
    let mut suite = TestSuite::new(mode.mode.name());
    suite.set_time(mode.checks.iter().map(|check| check.elapsed).sum::<Duration>());
    suite.add_test_cases(mode.checks.iter().map(case));
    if let Some(broken) = &mode.broken {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_message(first_line(broken)).set_description(broken.clone());
        suite.add_test_case(TestCase::new("environment", status));
    }
    suite
}

fn case(outcome: &Outcome) -> TestCase {
    let status = match &outcome.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::NotApplicable { reason } => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.clone());
            status
        }
        Verdict::Failed { reason, location, .. } => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let location = location.as_deref().unwrap_or_default();
            status.set_message(first_line(reason)).set_description(format!("{reason}\n{location}"));
            status
        }
    };
    let mut case = TestCase::new(outcome.name, status);
    case.set_time(outcome.elapsed);
    if let Some((group, _)) = outcome.name.split_once("::") {
        case.set_classname(group);
    }
    if let Verdict::Failed { agent_log, kernel_log, .. } = &outcome.verdict {
        case.set_system_out(agent_log.clone());
        case.set_system_err(kernel_log.clone());
    }
    case
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Mode;

    #[test]
    fn failure_skip_and_broken_environment_are_distinguished() {
        let outcome = |name, verdict| Outcome {
            name,
            purpose: "",
            verdict,
            elapsed: Duration::from_millis(1500),
        };
        let failed = Verdict::Failed {
            reason: "a < b\nmore".into(),
            location: Some("f.rs:7".into()),
            agent_log: "\u{1b}[1m!".into(),
            kernel_log: "[    1.0] sda".into(),
        };
        let mut mode = ModeReport::new(Mode::V1);
        mode.checks = vec![
            outcome("plug::one", Verdict::Passed),
            outcome("plug::two", failed),
            outcome("filter::three", Verdict::NotApplicable { reason: "no filter".into() }),
        ];
        mode.broken = Some("QEMU ended".into());
        let report = Report { schema: 2, subject: None, modes: vec![mode] };
        assert_eq!(report.counts().to_string(), "2 run, 1 failed, 1 not applicable");
        let xml = report.junit();
        for part in [
            r#"<testsuite name="v1" tests="4" skipped="1" errors="1" failures="1" time="4.500">"#,
            r#"<testcase name="plug::one" classname="plug" time="1.500"/>"#,
            r#"<failure message="a &lt; b">a &lt; b"#,
            r#"<skipped message="no filter"/>"#,
            "<system-err>[    1.0] sda</system-err>",
            r#"<error message="QEMU ended">"#,
        ] {
            assert!(xml.contains(part), "{part} in\n{xml}");
        }
        assert!(!xml.contains('\u{1b}'), "{xml}");
    }
}
