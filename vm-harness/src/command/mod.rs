//! The subcommands of `vm-harness`, one file or directory each, and the progress line that they
//! share.

mod bench;
mod boot;
mod conformance;
mod console;
mod crash;
mod demo;
mod exec;
mod guest_options;
mod logs;
mod matrix;
mod node;
mod progress;
mod soak;
mod wait_status;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
pub(crate) use wait_status::WaitStatus;

/// Boot QEMU sandboxes, and measure and test hot-plug of block volumes in them
#[derive(Debug, Parser)]
#[command(version, about, before_help = "Example: vm-harness boot")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a sandbox, print how to reach it as one line of JSON, and run it until standard input
    /// closes or a signal comes
    Boot(boot::Boot),
    /// Run a command in a container of a sandbox that `boot` runs
    Exec(exec::Exec),
    /// Follow the guest's console of a sandbox that `boot` runs
    Console(console::Console),
    /// Print the last messages of a sandbox that `boot` runs: its guest, QEMU, the vsock back end
    Logs(logs::Logs),
    /// Boot a sandbox, hot-plug two volumes into a running container, and compare every byte
    Demo(demo::Demo),
    /// Measure hot-plug and hot-unplug, and the minimum time that they could take
    Bench(bench::Bench),
    /// Check that an agent plugs volumes correctly: your agent, on your kernel and QEMU
    Conformance(Box<conformance::ConformanceCommand>),
    /// Disturb hot-plug and hot-unplug at every fault point in every way, and print the results
    Crash(crash::Crash),
    /// Run the conformance suite with several kernels and QEMU versions
    Matrix(matrix::Matrix),
    /// Plug and unplug a volume many times beside a volume that is under load
    Soak(soak::Soak),
    /// Boot a Debian node with containerd and the Debian package, and plug volumes into its pods
    Node(node::NodeCommand),
    /// What runs in the node
    #[command(hide = true)]
    NodeSuite,
}

pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    let result = match arguments.command {
        Command::Boot(boot) => boot.run().await,
        Command::Exec(exec) => exec.run().await,
        Command::Console(console) => console.run(),
        Command::Logs(logs) => logs.run(),
        Command::Demo(demo) => demo.run().await,
        Command::Bench(bench) => bench.run().await,
        Command::Conformance(conformance) => Ok(conformance.run().await),
        Command::Crash(crash) => crash.run().await,
        Command::Matrix(matrix) => matrix.run().await,
        Command::Soak(soak) => soak.run().await,
        Command::Node(node) => node.run().await,
        Command::NodeSuite => vm_harness::node::suite::run().await.map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", error.chain());
        ExitCode::FAILURE
    })
}
