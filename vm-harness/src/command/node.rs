//! `vm-harness node`: a Debian node as a VM, and a line for each scenario in it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use vm_harness::{
    Environment, Error,
    node::{Node, report::Event},
    printable,
};

use super::{
    boot::signalled,
    progress::{ProgressLine, shown},
};

/// What is in the node.
#[derive(Debug, Args)]
#[command(before_help = "Example: ci/node, which makes what the node needs")]
pub(crate) struct NodeCommand {
    /// The Debian package to install (ci/package makes it)
    #[arg(long, value_name = "DEB")]
    package: PathBuf,
    /// A release of Kata, whose sandboxes the pods get: the directory with opt/kata. The agent in
    /// its guest image must contain the plugin
    #[arg(long, value_name = "DIRECTORY")]
    kata: Option<PathBuf>,
    /// The agent in the guest image is Kata's own, without the plugin: a hot-plug must be refused
    #[arg(long, requires = "kata")]
    stock_agent: bool,
    /// Emulate the VMs in the node, also if it has KVM: a host may not nest twice
    #[arg(long)]
    emulated: bool,
}

impl NodeCommand {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        let Self { package, kata, stock_agent, emulated } = self;
        let node = Node { package, kata, plugin: !stock_agent, emulated };
        let mut line = Some(ProgressLine::start("booting the node"));
        let mut listener = |event: &Event| {
            if let Some(line) = line.take() {
                line.end();
            }
            match event {
                Event::Running { scenario, milliseconds, journal } => {
                    let elapsed = Duration::from_millis(*milliseconds);
                    println!("{:>9}  {scenario}: still running", shown(elapsed));
                    print!("{}", printable(journal));
                    line = Some(ProgressLine::start(scenario));
                }
                Event::Begun { scenario } => line = Some(ProgressLine::start(scenario)),
                Event::Passed { scenario, milliseconds } => {
                    let elapsed = Duration::from_millis(*milliseconds);
                    println!("{:>9}  {scenario}", shown(elapsed));
                }
                Event::Failed { scenario, message, journal } => {
                    println!("{:>9}  {scenario}: {}", "FAILED", printable(message));
                    println!("--- the end of the node's journal\n{}", printable(journal));
                }
                Event::Ended => {}
            }
        };
        // After a signal, too, its disks are removed.
        let interrupted = signalled()?;
        let environment = Environment::from_variables();
        let passed = tokio::select! {
            passed = node.run(&environment, &mut listener) => passed?,
            () = interrupted => false,
        };
        Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
