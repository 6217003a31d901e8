//! The commands of `vm-harness`, one file each.

mod awaited;
mod bench;
mod boot;
mod conformance;
mod console;
mod crash;
mod demo;
mod empty_call;
mod exec;
mod logs;
mod matrix;
mod proxies;
mod raw_terminal;
mod share;
mod soak;
mod step;

use std::process::ExitCode;

pub(crate) use awaited::Awaited;
use clap::{Parser, Subcommand};

/// Boots QEMU sandboxes with block-volume hot-plug, and tests them.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot a sandbox, print how to reach it as one line of JSON, and hold it until standard input
    /// closes or a signal comes
    Boot(boot::Boot),
    /// Run a command in a container of a sandbox that `boot` holds
    Exec(exec::Exec),
    /// Follow what the guest of a sandbox that `boot` holds prints
    Console(console::Console),
    /// Show the last words of a sandbox that `boot` holds: its guest, QEMU, the vsock back end
    Logs(logs::Logs),
    /// Boot a sandbox, hot-plug two volumes into a running container, and compare every byte
    Demo(demo::Demo),
    /// Measure hot-plug and hot-unplug beside the least that they could take
    Bench(bench::Bench),
    /// Check that an agent plugs volumes as it should: yours, on your kernel and QEMU
    Conformance(Box<conformance::ConformanceCommand>),
    /// Disturb hot-plug and hot-unplug behind every step in every way, and print what comes of it
    Crash(crash::Crash),
    /// Run the conformance suite over kernels and QEMUs
    Matrix(matrix::Matrix),
    /// Plug and unplug a volume many times beside one that is under load
    Soak(soak::Soak),
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
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", error.chain());
        ExitCode::FAILURE
    })
}
