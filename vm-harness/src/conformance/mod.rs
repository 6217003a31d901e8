//! The conformance suite: does an agent, on a kernel and a QEMU, plug volumes as the contract says?
//!
//! The host's side is the real `ecr-runtime`, the guest's a VM that boots the agent as PID 1;
//! containers are made through Kata's own protocol, as its shims do. A [`Check`] is a small
//! asynchronous function that panics where something is wrong, as a test does; its panic is its
//! [`Verdict`]. All checks of a [`Mode`] share one VM, which is booted anew after a failure.
//!
//! ```no_run
//! # async fn suite() {
//! use vm_harness::{Environment, conformance::Conformance};
//!
//! let mut environment = Environment::from_variables();
//! environment.parts.agent = Some("/path/to/kata-agent".into());
//! let report = Conformance::new(environment).run(&mut |_| ()).await;
//! assert_eq!(report.counts().failed, 0);
//! # }
//! ```

mod caught;
mod check;
mod checks;
mod direct;
mod facts;
mod junit;
mod mode;
mod report;
mod stage;

use std::time::{Duration, Instant};

pub use check::{Check, Group};
pub use checks::GROUPS;
pub use facts::{Facts, Plugin};
pub use mode::Mode;
pub use report::{Counts, Event, ModeReport, Outcome, Report, Subject, Verdict};
pub use stage::Stage;

use crate::{Environment, Error};

/// How long a check may take with KVM.
const CHECK: Duration = Duration::from_secs(45);

/// What to check, and on what.
#[derive(Debug, Clone)]
pub struct Conformance {
    /// QEMU, and the image with the agent.
    pub environment: Environment,
    /// Name of the image that the caller's parts go into.
    pub image: String,
    /// A VM each.
    pub modes: Vec<Mode>,
    /// Further words of the kernel's command line.
    pub kernel_parameters: Vec<String>,
    /// Only checks with one of these in their name; all if empty.
    pub only: Vec<String>,
    /// What `ecr-runtime` gets as `--timeout`.
    pub timeout: Duration,
}

impl Conformance {
    /// All checks in all modes.
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            image: "default".to_owned(),
            modes: Mode::ALL.to_vec(),
            kernel_parameters: Vec::new(),
            only: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }

    /// The checks that are wanted.
    pub fn checks(&self) -> impl Iterator<Item = &'static Check> {
        let wanted = |check: &&Check| {
            self.only.is_empty() || self.only.iter().any(|part| check.name().contains(part))
        };
        GROUPS.iter().flat_map(|group| group.checks).filter(wanted)
    }

    /// Runs the suite. `told` hears of everything as it happens.
    pub async fn run(&self, told: &mut dyn FnMut(Event<'_>)) -> Report {
        let mut report = Report::new();
        for &mode in &self.modes {
            let result = self.run_mode(mode, &mut report, told).await;
            if let Some(this) = report.modes.last_mut().filter(|this| this.mode == mode) {
                this.broken = result.err().map(|error| error.chain());
                told(Event::ModeEnds(this));
            }
            // Without a single VM it is the environment, and other modes have the same.
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
        told: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), Error> {
        report.modes.push(ModeReport::new(mode));
        let image = self.environment.image(&self.image)?;
        if let Some(reason) = mode.refused_by(&image) {
            self.checks().for_each(|check| {
                report.record(Outcome::not_applicable(check, reason.clone()), told);
            });
            return Ok(());
        }
        let mut stage = None;
        let mut closed: Option<&Check> = None;
        for check in self.checks() {
            if let Some(gate) = closed {
                let reason = format!("{} failed", gate.name());
                report.record(Outcome::not_applicable(check, reason), told);
                continue;
            }
            let ready = match stage.take() {
                Some(ready) => ready,
                None => {
                    let ready = Stage::start(self, mode).await?;
                    report.meet(&ready, told);
                    ready
                }
            };
            let outcome = ready.run(check).await;
            let failed = matches!(outcome.verdict, Verdict::Failed { .. });
            report.record(outcome, told);
            if failed && check.is_gate() {
                closed = Some(check);
            }
            // What a failure left behind must not be the next check's.
            if !failed {
                stage = Some(ready);
            }
        }
        Ok(())
    }
}

impl Stage {
    /// Runs one check here, if it applies.
    pub async fn run(&self, check: &'static Check) -> Outcome {
        if let Err(reason) = check.applies(self.facts()) {
            return Outcome::not_applicable(check, reason);
        }
        let start = Instant::now();
        let guest = self.sandbox().guest();
        let verdict =
            match guest.wait_for(check.name(), CHECK, caught::caught(check.run(self))).await {
                Ok(Ok(())) => Verdict::Passed,
                Ok(Err(caught::Panic { message, place })) => {
                    Verdict::failed(message, place, guest.console())
                }
                Err(error) => Verdict::failed(error.chain(), None, guest.console()),
            };
        Outcome { verdict, elapsed: start.elapsed(), ..Outcome::of(check) }
    }
}
