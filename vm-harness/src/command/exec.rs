//! `vm-harness exec`: a command in a container of a sandbox that another process holds.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use vm_harness::{Container, Error};

/// Where to run what.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// The run directory that `boot` printed
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// The container's id, or the beginning of it
    #[arg(long, value_name = "ID")]
    container: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        let container = Container::find(&self.run_dir, &self.container).await?;
        let status = container
            .exec_on(&self.command, tokio::io::stdin(), tokio::io::stdout(), tokio::io::stderr())
            .await?;
        // The thread that reads standard input may still wait for it, and would hold the runtime.
        std::process::exit(status)
    }
}
