//! `vm-harness bench`: measures hot-plug and hot-unplug, and their floor, the minimum time that
//! they could take, alternately in the same VM; beside them what others do: `virsh`, and a shell
//! that polls. One report has all rows ([`report`]); each row has a file of its own.

mod batch;
mod boot;
mod floor;
mod hot_plug;
mod list;
mod logging_agent;
mod machine;
mod markdown;
mod mount;
mod plan;
mod plot;
mod plugin_cost;
mod polling;
mod process;
mod report;
mod row;
mod run;
mod samples;
mod scale;
mod subject;
mod throughput;
mod trace;
mod transport;
mod virsh;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vm_harness::{Environment, Error};

use plugin_cost::PluginCost;

/// What to measure.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness bench --rounds 20")]
pub(crate) struct Bench {
    /// Number of measured rounds, after those to warm up
    #[arg(long, default_value_t = 50, value_name = "N")]
    rounds: usize,
    /// Measure fewer rows, five rounds each; `virsh` only if libvirt is below the cache
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Do not compare with `virsh`
    #[arg(long)]
    without_virsh: bool,
    /// Exit with a failure if a goal is missed
    #[arg(long)]
    strict: bool,
    /// Directory of the report: what a reader needs to compare it with another machine's, all raw
    /// values, and the plots [default: bench in Cargo's target directory]
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Write the tables to DIR/figures.md and the plots to DIR/pictures
    #[arg(long, value_name = "DIR")]
    docs: Option<PathBuf>,
    /// Print when what happens in a hot-plug, on the host and in the guest
    #[arg(long)]
    trace: bool,
    /// A further parameter of the kernel command line; may be repeated
    #[arg(long, value_name = "PARAMETER")]
    kernel_param: Vec<String>,
    /// Measure only the time until the agent answers, of booted and of restored guests
    #[arg(long)]
    boot: bool,
    #[command(flatten)]
    plugin_cost: PluginCost,
}

impl Bench {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        if self.boot {
            boot::run(self.rounds).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let report = run::run(&self).await?;
        print!("{}", report.markdown());
        let usual = || Environment::from_variables().target.join("bench");
        report.write(&self.report.clone().unwrap_or_else(usual))?;
        if let Some(directory) = &self.docs {
            report.write_docs(directory)?;
        }
        let missed: Vec<_> = report.missed().map(|row| row.measure.as_str()).collect();
        if missed.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("goals that were missed: {}", missed.join("; "));
        Ok(if self.strict { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}
