//! The plugin of kubectl: attachments by one command each, in the way of KubeVirt's virtctl. It has
//! the rights of its user and no others: everything is done by the resource.

mod attach;
mod chain;
mod cluster;
mod describe;
mod detach;
mod error;
mod list;
mod output;
mod wait;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};

use attach::Attach;
use cluster::ClusterArgs;
use describe::Describe;
use detach::Detach;
use error::Error;
use list::List;

/// Attach block volumes to containers of running Kata pods, and detach them
#[derive(Debug, Parser)]
#[command(name = "kubectl-block_volume", bin_name = "kubectl block_volume", version)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    cluster: ClusterArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Attach(Box<Attach>),
    Detach(Detach),
    List(List),
    Describe(Describe),
    /// Print a completion script
    Completions {
        /// Shell to print it for
        shell: clap_complete::Shell,
    },
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let Cli { cluster, command } = Cli::parse();
    let text = match command {
        Command::Completions { shell } => Ok(completions(shell)),
        command => block_on(work(&cluster, command)),
    };
    let printed = text.and_then(|text| {
        // A reader that closes its end early has what it wanted.
        match io::stdout().write_all(text.as_bytes()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(e)),
            _ => Ok(()),
        }
    });
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", e.chain());
            if let Some(remedy) = e.remedy() {
                eprintln!("remedy: {remedy}");
            }
            e.exit_status().code().into()
        }
    }
}

fn block_on(work: impl Future<Output = Result<String, Error>>) -> Result<String, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::Runtime)?.block_on(work)
}

async fn work(cluster: &ClusterArgs, command: Command) -> Result<String, Error> {
    let cluster = cluster.connect().await?;
    match command {
        Command::Attach(verb) => verb.run(&cluster).await,
        Command::Detach(verb) => verb.run(&cluster).await,
        Command::List(verb) => verb.run(&cluster).await,
        Command::Describe(verb) => verb.run(&cluster).await,
        Command::Completions { shell } => Ok(completions(shell)),
    }
}

fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "kubectl-block_volume", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_the_cluster_may_be_anywhere() {
        for words in [
            ["x", "-n", "db", "describe", "scratch"],
            ["x", "describe", "scratch", "--namespace", "db"],
        ] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert_eq!(cli.cluster.namespace.as_deref(), Some("db"));
        }
    }

    #[test]
    fn completions_name_the_commands() {
        assert!(completions(clap_complete::Shell::Bash).contains("detach"));
    }
}
