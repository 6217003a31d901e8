//! The command line, by [clap](https://docs.rs/clap): flags, their checks, and the way from a verb to its file.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    Error,
    agent::AgentAddress,
    deadline::parse_duration,
    hot_plug,
    output::{self, Failure, Format},
    sandbox::Search,
};

/// The number above it is no user's and no group's: `chown(2)` takes it for "leave it".
const LARGEST_ID: i64 = u32::MAX as i64 - 1;

/// Hot-plugs host block volumes into running containers of VM sandboxes.
#[derive(Debug, Parser)]
#[command(name = "ecr-runtime", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Directory of the sandboxes' state [default: /run/vc, then /run/kata]
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Works on block volumes
    BlockVolume {
        #[command(subcommand)]
        verb: Verb,
    },
    /// Prints a completion script
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum Verb {
    HotPlug(Box<HotPlug>),
}

/// Which sandbox, how to reach it, and how to tell what came of it; the same for all verbs.
#[derive(Debug, Args)]
pub struct Target {
    /// The sandbox's id, or the start of it [default: the one that has the container]
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,

    /// The container's id, or the start of it
    #[arg(long, value_name = "ID")]
    pub container: String,

    /// Time for the whole command, such as 30s or 1500ms
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    pub timeout: Duration,

    /// How the result is printed
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "human")]
    pub output: Format,

    /// QEMU's QMP socket, in place of the one that belongs to the sandbox
    #[arg(long, value_name = "PATH")]
    pub qmp: Option<PathBuf>,

    /// The agent's address: vsock://CID:PORT, hvsock://PATH:PORT or unix://PATH
    #[arg(long, value_name = "ADDRESS")]
    pub agent: Option<String>,

    /// The virtio-scsi controller, by QEMU's id [default: scsi0, or the only one]
    #[arg(long, value_name = "ID")]
    pub controller: Option<String>,

    /// Says on standard error what is done
    #[arg(short, long)]
    pub verbose: bool,
}

/// Makes host block volumes usable in a running container
///
/// A volume is a block device or a raw image. It is claimed for as long as the sandbox has it. Several volumes take one call:
/// repeat --block-volume and --device-path in pairs; then all of them are plugged or none.
#[derive(Debug, Args)]
pub struct HotPlug {
    /// How to reach the sandbox.
    #[command(flatten)]
    pub target: Target,

    /// Path of the volume on the host
    #[arg(long, value_name = "PATH", required = true)]
    pub block_volume: Vec<PathBuf>,

    /// Path of the device in the container; nothing may be there yet
    #[arg(long, value_name = "PATH", required = true)]
    pub device_path: Vec<String>,

    /// The container can only read
    #[arg(long)]
    pub read_only: bool,

    /// Owner of the device in the container
    #[arg(long, value_name = "ID", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=LARGEST_ID))]
    pub uid: u32,

    /// Group of the device in the container
    #[arg(long, value_name = "ID", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=LARGEST_ID))]
    pub gid: u32,

    /// Permission bits of the device in the container, in octal
    #[arg(long, value_name = "BITS", default_value = "660", value_parser = parse_mode)]
    pub mode: u32,
}

impl Target {
    /// What is looked for, below `run_dir` if one was named.
    ///
    /// # Errors
    /// The agent's address is not one.
    pub fn search(&self, run_dir: Option<PathBuf>) -> Result<Search, Error> {
        let agent = self.agent.as_deref().map(str::parse::<AgentAddress>).transpose()?;
        Ok(Search {
            run_dir,
            sandbox: self.sandbox.clone(),
            container: self.container.clone(),
            qmp: self.qmp.clone(),
            agent,
        })
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| mode <= 0o777 && !text.starts_with('+'));
    mode.ok_or_else(|| "expected permission bits in octal, at most 777".to_owned())
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return refuse(&e),
    };
    match cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ecr-runtime", &mut script);
            // A reader that closed its end early has what it wanted.
            let _ = io::stdout().write_all(&script);
            ExitCode::SUCCESS
        }
        Command::BlockVolume { verb: Verb::HotPlug(verb) } => {
            let format = verb.target.output;
            let work = hot_plug::run(&verb, cli.run_dir);
            let done = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| Error::system("epoll_create", "", e))
                .and_then(|runtime| runtime.block_on(work));
            match done {
                Ok(report) => {
                    output::print_report(&report, format);
                    ExitCode::SUCCESS
                }
                Err(e) => {
                    let failure = Failure::from(&e);
                    output::print_failure(&failure, format);
                    ExitCode::from(failure.error.exit_code)
                }
            }
        }
    }
}

/// A command line that is not understood. Whoever asked for JSON gets JSON.
fn refuse(error: &clap::Error) -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let wants_json = arguments.iter().any(|a| a == "--output=json")
        || arguments.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let text = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        output::print_failure(&Failure::from(&Error::Usage { text }), Format::Json);
    } else {
        // A closed standard output or error leaves nothing to tell it to.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[rstest]
    #[case("660", Some(0o660))]
    #[case("0600", Some(0o600))]
    #[case("1777", None)]
    #[case("8", None)]
    #[case("+7", None)]
    #[case("", None)]
    fn modes_are_octal(#[case] text: &str, #[case] mode: Option<u32>) {
        assert_eq!(parse_mode(text).ok(), mode);
    }

    #[test]
    fn the_run_directory_is_taken_before_and_after_the_verb() {
        let verb = ["--container", "c", "--block-volume", "/b", "--device-path", "/d"];
        for line in [
            [&["x", "--run-dir", "/r", "block-volume", "hot-plug"][..], &verb].concat(),
            [&["x", "block-volume", "hot-plug", "--run-dir", "/r"][..], &verb].concat(),
        ] {
            assert_eq!(Cli::try_parse_from(line).unwrap().run_dir, Some("/r".into()));
        }
    }
}
