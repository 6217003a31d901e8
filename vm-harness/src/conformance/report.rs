//! What came of a run: for people a table, for programs JSON.

use std::{fmt, time::Duration};

use host_trigger::printable::printable;
use serde::Serialize;

use super::{Check, Mode, Stage};
use crate::Console;

/// By which hosts find the plugin.
pub(super) const FEATURE: &str = "block-volume";

/// Lines of the console that a failure keeps.
const CONSOLE_LINES: usize = 15;

/// Lines of a failure's reason that the table shows.
const REASON_LINES: usize = 20;

/// Everything.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of this document.
    pub schema: u32,
    /// What was checked; absent where no VM came up.
    pub subject: Option<Subject>,
    /// In the order in which they ran.
    pub modes: Vec<ModeReport>,
}

/// What was checked, and on what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// File name of the agent on this machine.
    pub agent: String,
    /// The version that it gives.
    pub version: String,
    /// `agent_details.extra_features`.
    pub features: Vec<String>,
    /// The vsock port on which it was asked for the plugin, where that is not its own server's.
    pub plugin_port: Option<u32>,
    /// The plugin's version and API level; absent where the agent has none.
    pub plugin: Option<(String, u32)>,
    /// Why it has none, in its words.
    pub no_plugin: Option<String>,
    /// The guest kernel's release.
    pub kernel: String,
    /// QEMU's version.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
}

/// One mode's checks.
#[derive(Debug, Clone, Serialize)]
pub struct ModeReport {
    /// The guest's kind.
    pub mode: Mode,
    /// From QEMU's start to the agent's answer, for each VM: a failed check costs one more.
    pub boots_ms: Vec<u64>,
    /// In the order in which they ran.
    pub checks: Vec<Outcome>,
    /// Why the checks that are missing could not be run.
    pub broken: Option<String>,
}

/// What came of a check.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// `group::what_is_so`.
    pub name: &'static str,
    /// What it proves.
    pub purpose: &'static str,
    /// Passed, failed or not applicable.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// From its start to its end.
    #[serde(rename = "elapsed_ms", serialize_with = "milliseconds")]
    pub elapsed: Duration,
}

/// The three ends of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It does not.
    Failed {
        /// What was found instead.
        reason: String,
        /// `file:line` of the assertion.
        place: Option<String>,
        /// The guest console's last lines.
        console: String,
    },
    /// This guest or agent has nothing that it could be held against.
    NotApplicable {
        /// Why.
        reason: String,
    },
}

/// How many.
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
    /// No more of this mode.
    ModeEnds(&'a ModeReport),
}

impl Report {
    pub(super) fn new() -> Self {
        Self { schema: 1, subject: None, modes: Vec::new() }
    }

    pub(super) fn meet(&mut self, stage: &Stage, told: &mut dyn FnMut(Event<'_>)) {
        if self.subject.is_none() {
            told(Event::Subject(self.subject.insert(Subject::of(stage))));
        }
        let booted_in = stage.sandbox().booted_in();
        if let Some(mode) = self.modes.last_mut() {
            mode.boots_ms.push(whole_milliseconds(booted_in));
            told(Event::Booted(mode.mode, booted_in));
        }
    }

    pub(super) fn record(&mut self, outcome: Outcome, told: &mut dyn FnMut(Event<'_>)) {
        if let Some(mode) = self.modes.last_mut() {
            told(Event::Outcome(mode.mode, &outcome));
            mode.checks.push(outcome);
        }
    }

    /// Over all modes.
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

    /// Why there is less in it than was asked for.
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
    /// A check that has passed in no time.
    pub(super) fn of(check: &Check) -> Self {
        let (name, purpose) = (check.name(), check.purpose());
        Self { name, purpose, verdict: Verdict::Passed, elapsed: Duration::ZERO }
    }

    pub(super) fn not_applicable(check: &Check, reason: String) -> Self {
        Self { verdict: Verdict::NotApplicable { reason }, ..Self::of(check) }
    }
}

impl Verdict {
    pub(super) fn failed(reason: String, place: Option<String>, console: &Console) -> Self {
        Self::Failed { reason, place, console: console.tail(CONSOLE_LINES) }
    }
}

impl Subject {
    fn of(stage: &Stage) -> Self {
        let (sandbox, facts) = (stage.sandbox(), stage.facts());
        let image = image_builder::image::read(sandbox.image());
        let (agent, kernel) = image.map(|image| (image.agent, image.kernel)).unwrap_or_default();
        let plugin = facts.plugin.as_ref();
        Self {
            agent,
            version: printable(&facts.version),
            features: facts.features.iter().map(|feature| printable(feature)).collect(),
            plugin_port: sandbox.has_own_plugin_port().then(|| sandbox.plugin_port()),
            plugin: plugin.ok().map(|plugin| (printable(&plugin.version), plugin.api_level)),
            no_plugin: plugin.err().map(|why| printable(why)),
            kernel,
            qemu: stage.qemu.clone(),
            accelerator: sandbox.guest().accelerator().to_string(),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            agent,
            version,
            features,
            plugin_port,
            plugin,
            no_plugin,
            kernel,
            qemu,
            accelerator,
        } = self;
        let place = plugin_port.map(|port| format!(" on vsock port {port}")).unwrap_or_default();
        let version = if version.is_empty() { "(no version)" } else { version };
        match plugin {
            Some((plugin, api)) => write!(
                f,
                "{agent} {version} with block-volume plugin {plugin} (API level {api}){place}"
            )?,
            None => {
                let why = no_plugin.as_deref().unwrap_or_default();
                if features.iter().any(|feature| feature == FEATURE) {
                    write!(
                        f,
                        "{agent} {version} whose block-volume plugin does not serve Probe{place}: {why}"
                    )?;
                } else {
                    write!(
                        f,
                        "{agent} {version} WITHOUT the block-volume plugin; asked for it{place}, the agent says: {why}"
                    )?;
                }
            }
        }
        write!(f, ", kernel {kernel}, QEMU {qemu}, {accelerator}")
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = format!("{:.1} s", self.elapsed.as_secs_f64());
        match &self.verdict {
            Verdict::Passed => write!(f, "passed  {time:>7}  {}", self.name),
            Verdict::NotApplicable { reason } => {
                write!(f, "n/a              {}: {}", self.name, printable(reason))
            }
            Verdict::Failed { reason, place, .. } => {
                write!(f, "FAILED  {time:>7}  {} ({})", self.name, self.purpose)?;
                for line in reason.lines().take(REASON_LINES) {
                    // It may quote the guest.
                    write!(f, "\n                   {}", printable(line))?;
                }
                match place {
                    Some(place) => write!(f, "\n                   at {place}"),
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
