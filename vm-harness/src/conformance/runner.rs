//! Runs the checks of a suite, mode by mode.

use std::time::{Duration, Instant};

use super::{
    Check, Conformance, Event, Fixture, GROUPS, Mode, ModeReport, Outcome, Report, Verdict,
};
use crate::{
    Error,
    panic_capture::{Panic, catch_panic},
    vm::console::MARK,
};

/// How long a check may take with KVM.
const CHECK: Duration = Duration::from_secs(45);
/// How long its log may take to be on the console after its end.
const LOG: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(20);

impl Conformance {
    /// Returns the checks that `only` selects.
    pub fn checks(&self) -> impl Iterator<Item = &'static Check> {
        let wanted = |check: &&Check| {
            self.only.is_empty() || self.only.iter().any(|part| check.name().contains(part))
        };
        GROUPS.iter().flat_map(|group| group.checks).filter(wanted)
    }

    /// Runs the suite. `listener` gets each event when it happens.
    pub async fn run(&self, listener: &mut dyn FnMut(Event<'_>)) -> Report {
        let mut report = Report::new();
        for &mode in &self.modes {
            let result = self.run_mode(mode, &mut report, listener).await;
            if let Some(this) = report.modes.last_mut().filter(|this| this.mode == mode) {
                this.broken = result.err().map(|error| error.chain());
                listener(Event::ModeEnds(this));
            }
            // If not a single VM came up, the environment is broken, for all modes.
            if report.subject.is_none() && report.broken().is_some() {
                break;
            }
        }
        report
    }

    async fn run_mode(
        &self,
        mode: Mode,
        report: &mut Report,
        listener: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Error> {
        report.modes.push(ModeReport::new(mode));
        let image = self.environment.image(&self.image)?;
        if let Some(reason) = mode.refused_by(&image) {
            self.checks().for_each(|check| {
                report.record(Outcome::not_applicable(check, reason.clone()), listener);
            });
            return Ok(());
        }
        let mut fixture = None;
        let mut failed_gate: Option<&Check> = None;
        for check in self.checks() {
            if let Some(gate) = failed_gate {
                let reason = format!("{} failed", gate.name());
                report.record(Outcome::not_applicable(check, reason), listener);
                continue;
            }
            let ready = match fixture.take() {
                Some(ready) => ready,
                None => {
                    let ready = Fixture::start(self, mode).await?;
                    report.record_boot(&ready, listener);
                    ready
                }
            };
            let outcome = ready.run(check).await;
            let failed = matches!(outcome.verdict, Verdict::Failed { .. });
            report.record(outcome, listener);
            if failed && check.is_gate() {
                failed_gate = Some(check);
            }
            // After a failure the next check gets a new VM, without leftovers.
            if !failed {
                fixture = Some(ready);
            }
        }
        Ok(())
    }
}

impl Fixture {
    /// Runs one check, if it applies.
    pub async fn run(&self, check: &'static Check) -> Outcome {
        if let Err(reason) = check.applies(self.info()) {
            return Outcome::not_applicable(check, reason);
        }
        let guest = self.sandbox().guest();
        let (start, printed) = (Instant::now(), guest.console().length());
        let ran = guest.wait_for(check.name(), CHECK, catch_panic(check.run(self))).await;
        let elapsed = start.elapsed();
        let failure = match ran {
            Ok(Ok(())) => None,
            Ok(Err(Panic { message, location })) => Some((message, location)),
            Err(error) => Some((error.chain(), None)),
        };
        let verdict = match failure {
            None => Verdict::Passed,
            Some((reason, location)) => {
                self.log_is_complete(check).await;
                Verdict::failed(reason, location, guest.console(), printed)
            }
        };
        Outcome { verdict, elapsed, ..Outcome::of(check) }
    }

    /// Waits until the console has the log of all requests of `check`: the plugin answers first,
    /// and writes its line to the slow console then. A guest that does not do so in time, or has
    /// ended, is a failure that is reported anyway.
    async fn log_is_complete(&self, check: &Check) {
        let guest = self.sandbox().guest();
        let mark = format!("{MARK}{} has ended", check.name());
        let complete = async {
            while self.sandbox().has_plugin_threads().await? {
                tokio::time::sleep(INTERVAL).await;
            }
            // What the agent wrote before is in the same queue of the terminal.
            self.sandbox().observer().write("/dev/console", &format!("{mark}\n")).await?;
            while !guest.console().text().contains(&mark) {
                tokio::time::sleep(INTERVAL).await;
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = guest.wait_for("the check's log", LOG, complete).await.flatten() {
            tracing::debug!(%error, "the log may not be complete");
        }
    }
}
