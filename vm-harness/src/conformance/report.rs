//! The results of a run, as text and as JSON.

use std::{fmt, time::Duration};

use host_trigger::sanitize::sanitize;
use serde::Serialize;

use super::{Check, Fixture, Mode, guest_info::FEATURE};
use crate::Console;

/// How many lines of the console a failure keeps.
const CONSOLE_LINES: usize = 15;

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

/// What was checked, and on what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// File name of the agent on this machine.
    pub agent: String,
    /// The version that it reports.
    pub version: String,
    /// `agent_details.extra_features`.
    pub features: Vec<String>,
    /// The vsock port of the plugin, if that is not the agent's own port.
    pub plugin_port: Option<u32>,
    /// The plugin's version and API level; absent if the agent has none.
    pub plugin: Option<(String, u32)>,
    /// The agent's answer if it has none.
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
        /// The last lines of the guest's console.
        console: String,
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
        Self { schema: 1, subject: None, modes: Vec::new() }
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
    pub(super) fn failed(reason: String, location: Option<String>, console: &Console) -> Self {
        Self::Failed { reason, location, console: console.tail(CONSOLE_LINES) }
    }
}

impl Subject {
    fn of(fixture: &Fixture) -> Self {
        let (sandbox, info) = (fixture.sandbox(), fixture.info());
        let image = image_builder::image::read(sandbox.image());
        let (agent, kernel) = image.map(|image| (image.agent, image.kernel)).unwrap_or_default();
        let plugin = info.plugin.as_ref();
        Self {
            agent,
            version: sanitize(&info.version),
            features: info.features.iter().map(|feature| sanitize(feature)).collect(),
            plugin_port: sandbox.has_own_plugin_port().then(|| sandbox.plugin_port()),
            plugin: plugin.ok().map(|plugin| (sanitize(&plugin.version), plugin.api_level)),
            no_plugin: plugin.err().map(|why| sanitize(why)),
            kernel,
            qemu: fixture.qemu.clone(),
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
        let port = plugin_port.map(|port| format!(" on vsock port {port}")).unwrap_or_default();
        let version = if version.is_empty() { "(no version)" } else { version };
        match plugin {
            Some((plugin, api)) => write!(
                f,
                "{agent} {version} with block-volume plugin {plugin} (API level {api}){port}"
            )?,
            None => {
                let why = no_plugin.as_deref().unwrap_or_default();
                if features.iter().any(|feature| feature == FEATURE) {
                    write!(
                        f,
                        "{agent} {version} whose block-volume plugin does not serve Probe{port}: {why}"
                    )?;
                } else {
                    write!(
                        f,
                        "{agent} {version} WITHOUT the block-volume plugin; asked for it{port}, \
                         the agent says: {why}"
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
