//! `vm-harness node`: a Debian node as a VM, and a line for each scenario in it.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, error::ErrorKind};
use vm_harness::{
    Environment, Error,
    node::{Node, Scenario, report::Event},
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
    /// Only this scenario, with what it builds upon; can be given several times
    #[arg(long = "scenario", value_enum, value_name = "NAME")]
    scenarios: Vec<Scenario>,
}

impl NodeCommand {
    /// Returns the node, unless a scenario was chosen that it does not have.
    fn node(self) -> Result<Node, clap::Error> {
        let Self { package, kata, stock_agent, emulated, scenarios } = self;
        let node = Node { package, kata, plugin: !stock_agent, emulated, scenarios };
        let all = node.all_scenarios();
        let Some(missing) = node.scenarios.iter().find(|chosen| !all.contains(chosen)) else {
            return Ok(node);
        };
        let names: Vec<_> = all.iter().map(|scenario| scenario.name()).collect();
        let message = format!(
            "with these options there is no scenario '{}'; there are: {}",
            missing.name(),
            names.join(", ")
        );
        let command = Self::augment_args(clap::Command::new("vm-harness node"));
        Err(command.bin_name("vm-harness node").error(ErrorKind::ArgumentConflict, message))
    }

    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        let node = self.node().unwrap_or_else(|error| error.exit());
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        node: NodeCommand,
    }

    fn parsed(words: &[&str]) -> Result<Node, String> {
        let words = [&["node", "--package", "x.deb"], words].concat();
        let parsed = Arguments::try_parse_from(words);
        parsed.and_then(|arguments| arguments.node.node()).map_err(|error| {
            assert_eq!(error.exit_code(), 2, "{error}");
            error.to_string()
        })
    }

    #[test]
    fn scenarios_are_chosen_by_name() {
        let node = parsed(&["--scenario", "stop-pod", "--scenario", "audit"]).unwrap();
        assert_eq!(node.scenarios, [Scenario::StopPod, Scenario::Audit]);
        assert_eq!(parsed(&[]).unwrap().scenarios, []);
    }

    #[test]
    fn an_unknown_scenario_is_answered_with_those_that_there_are() {
        let message = parsed(&["--scenario", "kill"]).unwrap_err();
        assert!(message.contains("'kill'") && message.contains("restart-containerd"), "{message}");
        for (words, missing, there_is) in [
            (&["--scenario", "kill-shim"][..], "kill-shim", "unplug, restart-containerd, stop-pod"),
            (&["--kata", "k", "--scenario", "refuse"], "refuse", "stop-container, stop-pod"),
            (&["--kata", "k", "--stock-agent", "--scenario", "plug"], "plug", "start, refuse"),
        ] {
            let message = parsed(words).unwrap_err();
            assert!(message.contains(&format!("'{missing}'")), "{message}");
            assert!(message.contains(there_is) && message.contains("Usage:"), "{message}");
        }
    }
}
