//! The results of a run, as text and as JSON.

use std::{fmt, time::Duration};

use host_trigger::sanitize::sanitize;
use serde::Serialize;

use super::{Check, Fixture, Mode, Subject};
use crate::Console;

/// How many lines of the agent's log a failure keeps.
const AGENT_LINES: usize = 20;

/// How many lines of the kernel's log a failure keeps.
const KERNEL_LINES: usize = 10;

/// How many lines of a failure's reason the table shows.
const REASON_LINES: usize = 20;

/// The results of all modes.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this document.
    pub schema: u32,
    /// What was checked; absent if no VM came up.
    pub subject: Option<Subject>,
    /// The modes, in the order in which they ran.
    pub modes: Vec<ModeReport>,
}

/// One mode's checks.
#[derive(Debug, Clone, Serialize)]
pub struct ModeReport {
    /// The kind of guest.
    pub mode: Mode,
    /// Time from QEMU's start to the agent's answer, for each VM: a failed check needs one more.
    pub boots_ms: Vec<u64>,
    /// The checks, in the order in which they ran.
    pub checks: Vec<Outcome>,
    /// Why the remaining checks could not be run.
    pub broken: Option<String>,
}

/// The result of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// `group::what_holds`.
    pub name: &'static str,
    /// What it proves.
    pub purpose: &'static str,
    /// Passed, failed or not applicable.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Time from its start to its end.
    #[serde(rename = "elapsed_ms", serialize_with = "milliseconds")]
    pub elapsed: Duration,
}

/// The three results of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// What it checks holds.
    Passed,
    /// It does not hold.
    Failed {
        /// The message of the assertion.
        reason: String,
        /// `file:line` of the assertion.
        location: Option<String>,
        /// The agent's last lines on the console since the check began. What other programs of
        /// the guest printed is among them.
        agent_log: String,
        /// The kernel's last lines on the console.
        kernel_log: String,
    },
    /// This guest or agent lacks what it checks.
    NotApplicable {
        /// What is missing.
        reason: String,
    },
}

/// Numbers of checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Passed or failed.
    pub run: usize,
    /// Failed.
    pub failed: usize,
    /// Not applicable.
    pub not_applicable: usize,
}

/// Something that happened during a run.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The first VM is up.
    Subject(&'a Subject),
    /// A VM of this mode is up.
    Booted(Mode, Duration),
    /// A check has ended.
    Outcome(Mode, &'a Outcome),
    /// All checks of this mode have ended.
    ModeEnds(&'a ModeReport),
}

impl Report {
    pub(super) fn new() -> Self {
        Self { schema: 2, subject: None, modes: Vec::new() }
    }

    /// Records a VM of the last mode, and what is checked if it is the first VM.
    pub(super) fn record_boot(&mut self, fixture: &Fixture, listener: &mut dyn FnMut(Event<'_>)) {
        if self.subject.is_none() {
            listener(Event::Subject(self.subject.insert(Subject::of(fixture))));
        }
        let boot_time = fixture.sandbox().boot_time();
        if let Some(mode) = self.modes.last_mut() {
            mode.boots_ms.push(whole_milliseconds(boot_time));
            listener(Event::Booted(mode.mode, boot_time));
        }
    }

    /// Records the result of a check of the last mode.
    pub(super) fn record(&mut self, outcome: Outcome, listener: &mut dyn FnMut(Event<'_>)) {
        if let Some(mode) = self.modes.last_mut() {
            listener(Event::Outcome(mode.mode, &outcome));
            mode.checks.push(outcome);
        }
    }

    /// Returns the numbers of checks in all modes.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for outcome in self.modes.iter().flat_map(|mode| &mode.checks) {
            match outcome.verdict {
                Verdict::Passed => counts.run += 1,
                Verdict::Failed { .. } => {
                    counts.run += 1;
                    counts.failed += 1;
                }
                Verdict::NotApplicable { .. } => counts.not_applicable += 1,
            }
        }
        counts
    }

    /// Returns why the report is incomplete, if it is.
    pub fn broken(&self) -> Option<&str> {
        self.modes.iter().find_map(|mode| mode.broken.as_deref())
    }
}

impl ModeReport {
    pub(super) fn new(mode: Mode) -> Self {
        Self { mode, boots_ms: Vec::new(), checks: Vec::new(), broken: None }
    }
}

impl Outcome {
    /// Returns a check that has passed, with no time.
    pub(super) fn of(check: &Check) -> Self {
        let (name, purpose) = (check.name(), check.purpose());
        Self { name, purpose, verdict: Verdict::Passed, elapsed: Duration::ZERO }
    }

    pub(super) fn not_applicable(check: &Check, reason: String) -> Self {
        Self { verdict: Verdict::NotApplicable { reason }, ..Self::of(check) }
    }
}

impl Verdict {
    /// Returns a failure of a check that began when the console had `start` bytes.
    pub(super) fn failed(
        reason: String,
        location: Option<String>,
        console: &Console,
        start: usize,
    ) -> Self {
        let agent_log = console.tail_of_programs_since(start, AGENT_LINES);
        Self::Failed {
            reason,
            location,
            agent_log,
            kernel_log: console.tail_of_kernel(KERNEL_LINES),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = format!("{:.1} s", self.elapsed.as_secs_f64());
        match &self.verdict {
            Verdict::Passed => write!(f, "passed  {time:>7}  {}", self.name),
            Verdict::NotApplicable { reason } => {
                write!(f, "n/a              {}: {}", self.name, sanitize(reason))
            }
            Verdict::Failed { reason, location, .. } => {
                write!(f, "FAILED  {time:>7}  {} ({})", self.name, self.purpose)?;
                for line in reason.lines().take(REASON_LINES) {
                    // It may contain text of the guest.
                    write!(f, "\n                   {}", sanitize(line))?;
                }
                match location {
                    Some(location) => write!(f, "\n                   at {location}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, failed, not_applicable } = self;
        write!(f, "{run} run, {failed} failed, {not_applicable} not applicable")
    }
}

fn whole_milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn milliseconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(whole_milliseconds(*time))
}
