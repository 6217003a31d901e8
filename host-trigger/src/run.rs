//! One run of the program: its command line, the verb's file, what is printed, what is noted for an
//! auditor, the exit status.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, Parser};
use serde::Serialize;

use crate::{
    Error,
    audit::Audit,
    check,
    checked::Checked,
    cli::{Cli, Command, Verb},
    hot_plug, hot_unplug, list,
    output::{self, Failure, Format},
    repair,
    repaired::Repaired,
    resize, stats, throttle,
};

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let Cli { run_dir, audit_log, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return refuse(&e),
    };
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ecr-runtime", &mut script);
            // A reader that closed its end early has what it wanted.
            let _ = io::stdout().write_all(&script);
            ExitCode::SUCCESS
        }
        Command::Check(verb) => {
            let format = verb.target.output;
            let work = |ending: Ending| {
                let print = |checked: &_| output::print_checked(checked, format);
                ending.with_status(wait_for(check::run(&verb, run_dir)), print, Checked::exit_code)
            };
            Ending::open(audit_log.as_deref(), format).map_or_else(|status| status, work)
        }
        Command::BlockVolume { verb } => {
            let opened = Ending::open(audit_log.as_deref(), verb.target().output);
            opened.map_or_else(|status| status, |ending| block_volume(&verb, run_dir, &ending))
        }
    }
}

fn block_volume(verb: &Verb, run_dir: Option<PathBuf>, ending: &Ending) -> ExitCode {
    let format = ending.format;
    let report = |report: &_| output::print_report(report, format);
    let listing = |listing: &_| output::print_listing(listing, format);
    match verb {
        Verb::HotPlug(verb) => ending.of(wait_for(hot_plug::run(verb, run_dir)), report),
        Verb::HotUnplug(verb) => ending.of(wait_for(hot_unplug::run(verb, run_dir)), report),
        Verb::List(verb) => ending.of(wait_for(list::list(verb, run_dir)), listing),
        Verb::Inspect(verb) => ending.of(wait_for(list::inspect(verb, run_dir)), listing),
        Verb::Resize(verb) => ending.of(wait_for(resize::run(verb, run_dir)), report),
        Verb::Throttle(verb) => ending.of(wait_for(throttle::run(verb, run_dir)), report),
        Verb::Stats(verb) => ending.of(wait_for(stats::run(verb, run_dir)), |counted| {
            output::print_stats(counted, format, verb.prometheus);
        }),
        Verb::Repair(verb) => {
            let print = |repaired: &_| output::print_repaired(repaired, format);
            ending.with_status(wait_for(repair::run(verb, run_dir)), print, Repaired::exit_code)
        }
    }
}

/// How a verb ends.
struct Ending {
    audit: Audit,
    format: Format,
}

impl Ending {
    /// Or the exit status, where the auditor cannot be told.
    fn open(audit_log: Option<&Path>, format: Format) -> Result<Self, ExitCode> {
        Audit::open(audit_log).map(|audit| Self { audit, format }).map_err(|e| failed(&e, format))
    }

    fn of<T: Serialize>(&self, done: Result<T, Error>, print: impl FnOnce(&T)) -> ExitCode {
        self.with_status(done, print, |_| 0)
    }

    fn with_status<T: Serialize>(
        &self,
        done: Result<T, Error>,
        print: impl FnOnce(&T),
        status: impl FnOnce(&T) -> u8,
    ) -> ExitCode {
        match done {
            Ok(done) => {
                let status = status(&done);
                self.audit.note(&done, status);
                print(&done);
                ExitCode::from(status)
            }
            Err(e) => {
                let failure = Failure::from(&e);
                self.audit.note(&failure, failure.error.exit_code);
                failed(&e, self.format)
            }
        }
    }
}

fn failed(error: &Error, format: Format) -> ExitCode {
    let failure = Failure::from(error);
    output::print_failure(&failure, format);
    ExitCode::from(failure.error.exit_code)
}

fn wait_for<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Error::system("epoll_create", "", e))?.block_on(work)
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
