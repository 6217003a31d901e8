//! `vm-harness crash`: disturbs hot-plug and hot-unplug at every fault point, in every way, takes
//! every remedy, and prints the results as a table. After a remedy a volume has to be attached or
//! gone, and never anything between.

mod background_run;
mod case;
mod disturbance;
mod fault_point;
mod fixture;
mod remedy;
mod volume_kind;
mod volume_state;

use std::process::ExitCode;

use clap::Args;
use vm_harness::Error;

use case::{Case, Row};
use disturbance::Disturbance;
use fixture::Fixture;
use volume_kind::VolumeKind;

/// The cases to run; all without an option.
#[derive(Debug, Args)]
#[command(
    before_help = "Example: vm-harness crash --disturbance killed --fault-point after-device-add"
)]
pub(crate) struct Crash {
    /// Only disturbances with this text in their name, for example "killed" or "QEMU"
    #[arg(long, value_name = "TEXT")]
    disturbance: Option<String>,
    /// Only fault points with this text in their name
    #[arg(long, value_name = "TEXT")]
    fault_point: Option<String>,
    /// Only the remedy of this name: hot-plug, hot-unplug, repair
    #[arg(long, value_name = "NAME")]
    remedy: Option<String>,
    /// What the container gets of the volumes
    #[arg(long, value_enum, default_value_t = VolumeKind::Device, value_name = "KIND")]
    kind: VolumeKind,
}

impl Crash {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        println!(
            "| command | fault point | disturbance | result | state in `list` | remedy \
             | result of the remedy | state at the end |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let mut fixture = None;
        let (mut rows, mut wrong) = (0, 0);
        for disturbance in Disturbance::ALL {
            if !selects(&self.disturbance, disturbance.name()) {
                continue;
            }
            let points = disturbance.fault_points(self.kind);
            for point in points.filter(|point| selects(&self.fault_point, point.name)) {
                for &remedy in disturbance.remedies(point.verb) {
                    let remedy_name = remedy.name(point.verb);
                    if self.remedy.as_ref().is_some_and(|wanted| wanted != remedy_name) {
                        continue;
                    }
                    let ready = match fixture.take() {
                        Some(ready) => ready,
                        None => Fixture::boot(self.kind).await?,
                    };
                    let case = Case { fixture: &ready, point, disturbance, remedy };
                    let mut row = Row::default();
                    let result = case.run(&mut row).await;
                    let Row { run, listed, remedy, end } = row;
                    let end = match &result {
                        Ok(()) => end,
                        Err(_) => format!("{end} **WRONG**"),
                    };
                    let (verb, at, what) = (point.verb.name(), point.name, disturbance.name());
                    println!(
                        "| {verb} | {at} | {what} | {run} | {listed} | {remedy_name} \
                         | {remedy} | {end} |"
                    );
                    rows += 1;
                    if let Err(why) = result {
                        wrong += 1;
                        eprintln!(
                            "{verb}, {at}, {what}, {remedy_name}: {why}\n{}",
                            ready.sandbox.guest().report()
                        );
                        // The next case gets a new VM, without leftovers.
                        ready.sandbox.expect_kernel_fault();
                    } else if !disturbance.ends_vm() {
                        fixture = Some(ready);
                    }
                }
            }
        }
        println!("\n{rows} rows, {wrong} wrong");
        Ok(if wrong == 0 && rows > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn selects(filter: &Option<String>, name: &str) -> bool {
    filter.as_ref().is_none_or(|part| name.contains(part.as_str()))
}
