//! `vm-harness bench`: measures hot-plug and hot-unplug, and their floor, the minimum time that
//! they could take, alternately in the same VM. The start of the process is measured separately,
//! with a call that does nothing. So is what every implementation needs beside the floor: a
//! connection to the agent, and a call that does nothing on it.

mod boot;
mod floor;
mod health_check;
mod plugin_cost;
mod times;

use std::process::ExitCode;

use clap::Args;
use guest_observer::Request;
use serde_json::Value;
use vm_harness::{Container, EcrRuntime, Error, Machine, Sandbox, Volume};

use super::progress::step;
use floor::{Commands, Floor, Stages};
use health_check::health_check;
use plugin_cost::PluginCost;
use times::{median, micros, row};

/// What to measure.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness bench --rounds 20")]
pub(crate) struct Bench {
    /// Number of measured rounds, after five rounds to warm up
    #[arg(long, default_value_t = 50, value_name = "N")]
    rounds: usize,
    /// A further parameter of the kernel command line; may be repeated
    #[arg(long, value_name = "PARAMETER")]
    kernel_param: Vec<String>,
    /// Measure only the time until the agent answers, of booted and of restored guests
    #[arg(long)]
    boot: bool,
    #[command(flatten)]
    plugin_cost: PluginCost,
}

const WARM_UP: usize = 5;
const PATH: &str = "/dev/bench";

impl Bench {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        if self.boot {
            boot::run(self.rounds).await?;
            return Ok(ExitCode::SUCCESS);
        }
        let machine =
            Machine { kernel_parameters: self.kernel_param.clone(), ..Machine::default() };
        let sandbox = step("boot a sandbox", Sandbox::boot(&machine)).await?;
        let container =
            sandbox.try_start_container(&vm_harness::ContainerOptions::default()).await?;
        let volume = Volume::loop_device(16 << 20);
        let commands = Commands::record(&sandbox, &container, &volume).await?;
        let mut monitor = sandbox.monitor().await?;
        let mut observer = sandbox.observer().open().await?;
        observer.ask(&Request::OpenUevents).await?;
        let mut floor =
            Floor { monitor: &mut monitor, observer: &mut observer, commands: &commands };
        let (mut plugs, mut unplugs) = (Rounds::default(), Rounds::default());
        let (mut starts, mut connects, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..WARM_UP + self.rounds {
            let plug =
                timed(&sandbox, &sandbox.hot_plug_command(&container, &[(&volume, PATH)])).await;
            let unplug = timed(&sandbox, &hot_unplug(&sandbox, &container)).await;
            let (plug_floor, unplug_floor) = floor.round(&volume, round).await?;
            let start = sandbox.ecr_runtime().args(["--version"]).run().await.elapsed;
            let (connect, call) = health_check(&sandbox).await?;
            if round >= WARM_UP {
                plugs.add(plug, plug_floor);
                unplugs.add(unplug, unplug_floor);
                starts.push(micros(start));
                connects.push(micros(connect));
                calls.push(micros(call));
            }
        }
        println!(
            "{} rounds, accelerator {}, milliseconds (minimum / median / 90 %)",
            self.rounds,
            sandbox.guest().accelerator()
        );
        row("a process that does nothing", &starts);
        row("a connection to the agent", &connects);
        row("a call of the agent that does nothing", &calls);
        plugs.print("hot-plug", &starts);
        unplugs.print("hot-unplug", &starts);
        self.plugin_cost.print(&sandbox).await?;
        Ok(ExitCode::SUCCESS)
    }
}

fn hot_unplug(sandbox: &Sandbox, container: &Container) -> EcrRuntime {
    let verb = ["block-volume", "hot-unplug", "--output", "json", "--sandbox", sandbox.id()];
    sandbox.ecr_runtime().args(verb).args(["--container", container.id(), "--device-path", PATH])
}

/// Runs a command of `ecr-runtime`, and returns its time from start to end and the stages that it
/// reports itself.
async fn timed(sandbox: &Sandbox, command: &EcrRuntime) -> (u64, Value) {
    let finished = command.run().await;
    finished.succeeded(sandbox.guest());
    (micros(finished.elapsed), finished.json()["timings_us"].clone())
}

/// The rounds of one command and of its floor.
#[derive(Default)]
struct Rounds {
    whole: Vec<u64>,
    stages: Vec<Value>,
    floor: Vec<Stages>,
}

impl Rounds {
    fn add(&mut self, (whole, stages): (u64, Value), floor: Stages) {
        self.whole.push(whole);
        self.stages.push(stages);
        self.floor.push(floor);
    }

    /// Returns the times of one stage of the floor.
    fn floor(&self, stage: &str) -> Vec<u64> {
        let stages = self.floor.iter().flatten();
        stages.filter(|(name, _)| *name == stage).map(|(_, time)| *time).collect()
    }

    fn print(&self, name: &str, starts: &[u64]) {
        println!();
        row(&format!("{name}, from start to end of the process"), &self.whole);
        let work: Vec<u64> = self
            .whole
            .iter()
            .zip(starts)
            .map(|(whole, start)| whole.saturating_sub(*start))
            .collect();
        row("  without the process", &work);
        row("  floor: connected client, minimal guest", &self.floor("total"));
        let ratio = median(&work) as f64 / median(&self.floor("total")) as f64;
        println!("  {name} without the process, beside the floor: {ratio:.2} at the median");
        println!("  stages of the command, as it reports them");
        let names: Option<Vec<String>> = self
            .stages
            .first()
            .and_then(Value::as_object)
            .map(|stages| stages.keys().cloned().collect());
        for name in names.unwrap_or_default() {
            let times: Vec<u64> =
                self.stages.iter().filter_map(|stages| stages[&name].as_u64()).collect();
            row(&format!("    {name}"), &times);
        }
        println!("  stages of the floor");
        for (name, _) in self.floor.first().into_iter().flatten() {
            row(&format!("    {name}"), &self.floor(name));
        }
    }
}
