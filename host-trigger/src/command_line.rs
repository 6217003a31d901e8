//! One run of the program: parse the command line, run the verb, print and audit its result, return
//! the exit status.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::{
    Error,
    cli::target::Target,
    commands::{
        check::{self, Check},
        complete,
        hot_plug::HotPlug,
        hot_unplug::HotUnplug,
        inspect::{self, Inspect},
        list::{self, List},
        node::{self, NodeVerb},
        repair::{self, Repair},
        resize::Resize,
        stats::{self, Stats},
        throttle::Throttle,
    },
    error::ErrorBody,
    format::Format,
    inherited,
    ops::pod_names::PodNames,
    output::{
        self,
        audit::{Audit, Requested},
        envelope::{Envelope, Outcome, Timings},
        findings, listing, node_report, prometheus, repair_report, report, stats_report,
    },
};

pub mod in_process;
mod pods;
mod requested;

use in_process::ChangingVerb as _;
use pods::run_named;

/// Hot-plug host block volumes into running containers of VM sandboxes.
#[derive(Debug, Parser)]
#[command(name = "ecr-runtime", version, propagate_version = true, max_term_width = 100)]
#[command(before_help = "Example: ecr-runtime block-volume hot-plug --container 4f1c \
                         --block-volume /dev/vg/data --device-path /dev/xvda")]
pub struct Cli {
    /// State directory of the sandboxes [default: /run/vc, then /run/kata; before them the same
    /// below /run/user/UID, if --vmm-user is given]
    #[arg(long, value_name = "DIR", global = true)]
    run_dir: Option<PathBuf>,

    /// Where a record of each operation is written: a file or a syslog socket [default: /dev/log,
    /// if it exists]
    #[arg(long, value_name = "PATH", global = true)]
    audit_log: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(Box<Check>),
    /// Work on block volumes
    #[command(before_help = "Example: ecr-runtime block-volume list --sandbox 7d3a")]
    BlockVolume {
        #[command(subcommand)]
        verb: Verb,
    },
    /// Let Kata start QEMU by ecr-qemu, for a QMP socket that the shim does not hold
    #[command(before_help = "Example: ecr-runtime node status")]
    Node {
        #[command(subcommand)]
        verb: NodeVerb,
    },
    /// Print a completion script
    #[command(before_help = "Example: ecr-runtime completions bash > \
                             /etc/bash_completion.d/ecr-runtime")]
    Completions {
        /// Shell to print it for
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum Verb {
    HotPlug(Box<HotPlug>),
    HotUnplug(Box<HotUnplug>),
    List(Box<List>),
    Inspect(Box<Inspect>),
    Resize(Box<Resize>),
    Throttle(Box<Throttle>),
    Stats(Box<Stats>),
    Repair(Box<Repair>),
}

impl Verb {
    fn target(&self) -> &Target {
        match self {
            Self::HotPlug(verb) => &verb.target,
            Self::HotUnplug(verb) => &verb.target,
            Self::List(verb) => &verb.target,
            Self::Inspect(verb) => &verb.target,
            Self::Resize(verb) => &verb.target,
            Self::Throttle(verb) => &verb.target,
            Self::Stats(verb) => &verb.target,
            Self::Repair(verb) => &verb.target,
        }
    }

    fn dry_run(&self) -> bool {
        match self {
            Self::HotPlug(verb) => verb.dry_run,
            Self::HotUnplug(verb) => verb.dry_run,
            Self::Resize(verb) => verb.dry_run,
            Self::Throttle(verb) => verb.dry_run,
            Self::Repair(verb) => verb.dry_run,
            Self::List(_) | Self::Inspect(_) | Self::Stats(_) => false,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::HotPlug(_) => "hot-plug",
            Self::HotUnplug(_) => "hot-unplug",
            Self::List(_) => "list",
            Self::Inspect(_) => "inspect",
            Self::Resize(_) => "resize",
            Self::Throttle(_) => "throttle",
            Self::Stats(_) => "stats",
            Self::Repair(_) => "repair",
        }
    }
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == complete::WORD) {
        return complete(words);
    }
    if let Err(e) = inherited::prepare() {
        return exit_code(0, [Err(e)]);
    }
    let Cli { run_dir, audit_log, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage_error(&e),
    };
    match command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ecr-runtime", &mut script);
            if shell == clap_complete::Shell::Bash {
                script = complete::with_names(&String::from_utf8_lossy(&script)).into_bytes();
            }
            exit_code(0, [output::write(&script)])
        }
        Command::Check(verb) => {
            let run = Run { name: "check", dry_run: false, format: verb.target.output };
            run.with_audit(audit_log.as_deref(), None, |audit| run.check(&verb, run_dir, audit))
        }
        Command::Node { verb } => {
            let (name, dry_run, format) = (verb.name(), verb.dry_run(), verb.output());
            let run = Run { name, dry_run, format };
            let requested = verb.changes().then(Requested::default);
            run.with_audit(audit_log.as_deref(), requested.as_ref(), |audit| {
                run.end(block_on(node::run(&verb)), audit, node_report::human)
            })
        }
        Command::BlockVolume { mut verb } => {
            let format = verb.target().output;
            let run = Run { name: verb.name(), dry_run: verb.dry_run(), format };
            let opened = run.open_audit(audit_log.as_deref(), verb.requested().as_ref());
            let audit = match opened {
                Ok(audit) => audit,
                Err(e) => return run.fail(&e, None),
            };
            match verb.find_pod(run_dir.as_deref()) {
                Ok(()) => run.block_volume(&verb, run_dir, &audit),
                Err(e) => run.fail(&e, Some(&audit)),
            }
        }
    }
}

/// Prints the names that complete a command line, for the function of bash; a failure if it wants
/// no name.
fn complete(words: impl Iterator<Item = OsString>) -> ExitCode {
    let mut words = words.map(|word| word.to_string_lossy().into_owned());
    let (line, word) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    match block_on(async { Ok(complete::run(&line, &word).await) }) {
        Ok(Some(names)) => {
            let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
            // Nothing reads it any more: then nothing is completed.
            let _ = output::write(lines.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(None) | Err(_) => ExitCode::FAILURE,
    }
}

/// One run of a verb.
#[derive(Debug, Clone, Copy)]
struct Run {
    name: &'static str,
    dry_run: bool,
    format: Format,
}

impl Run {
    /// Opens the audit log for `work`, and records its beginning if something is `requested` that
    /// may change anything. If that fails, or too few files can be opened, nothing is done.
    fn with_audit(
        self,
        path: Option<&Path>,
        requested: Option<&Requested<'_>>,
        work: impl FnOnce(&Audit) -> ExitCode,
    ) -> ExitCode {
        match self.open_audit(path, requested) {
            Ok(audit) => work(&audit),
            Err(e) => self.fail(&e, None),
        }
    }

    /// Opens the audit log, and records the beginning of what is `requested`.
    fn open_audit(
        self,
        path: Option<&Path>,
        requested: Option<&Requested<'_>>,
    ) -> Result<Audit, Error> {
        inherited::check_descriptors()?;
        let audit = Audit::open(path)?;
        requested.map_or(Ok(()), |requested| audit.begin(self.name, requested))?;
        Ok(audit)
    }

    fn block_volume(self, verb: &Verb, run_dir: Option<PathBuf>, audit: &Audit) -> ExitCode {
        let names = PodNames::new(verb.target().found.as_ref());
        match verb {
            Verb::HotPlug(verb) => {
                self.end(run_named(&names, verb.run(run_dir)), audit, report::human)
            }
            Verb::HotUnplug(verb) => {
                self.end(run_named(&names, verb.run(run_dir)), audit, report::human)
            }
            Verb::List(verb) => {
                let human = |envelope: &Envelope<_>| listing::table(&envelope.body);
                self.end(run_named(&names, list::run(verb, run_dir)), audit, human)
            }
            Verb::Inspect(verb) => {
                let human = |envelope: &Envelope<_>| listing::details(&envelope.body);
                self.end(run_named(&names, inspect::run(verb, run_dir)), audit, human)
            }
            Verb::Resize(verb) => {
                self.end(run_named(&names, verb.run(run_dir)), audit, report::human)
            }
            Verb::Throttle(verb) => {
                self.end(run_named(&names, verb.run(run_dir)), audit, report::human)
            }
            Verb::Stats(verb) => {
                let human = |envelope: &Envelope<_>| match verb.prometheus {
                    // The format ends with a newline of its own.
                    true => prometheus::exposition(&envelope.body).trim_end().to_owned(),
                    false => stats_report::human(&envelope.body),
                };
                let done = run_named(&names, stats::run(verb, run_dir));
                match &verb.output_file {
                    None => self.end(done, audit, human),
                    Some(path) => self.end_by(done, audit, |envelope| {
                        output::replace_file(path, &human(envelope))
                    }),
                }
            }
            Verb::Repair(verb) => {
                self.end(run_named(&names, repair::run(verb, run_dir)), audit, repair_report::human)
            }
        }
    }

    fn check(self, verb: &Check, run_dir: Option<PathBuf>, audit: &Audit) -> ExitCode {
        match block_on(check::run(verb, run_dir)) {
            Ok((report, timings)) => {
                let result = match report.status() {
                    findings::Status::Ok => Outcome::Ok,
                    findings::Status::Warning => Outcome::Warning,
                    findings::Status::Problem => Outcome::Problem,
                };
                let status = report.exit_code();
                let envelope = Envelope {
                    timings_us: Some(Timings(timings)),
                    ..Envelope::new(self.name, result, report)
                };
                let audited = audit.end(&envelope, status);
                let lines = || findings::lines(&envelope.body);
                let printed = output::print_result(self.format, &envelope, lines);
                exit_code(status, [audited, printed])
            }
            Err(e) => self.fail(&e, Some(audit)),
        }
    }

    /// Prints and audits the result of a verb; returns the exit status.
    fn end<B: Serialize>(
        self,
        done: Result<Envelope<B>, Error>,
        audit: &Audit,
        human: impl FnOnce(&Envelope<B>) -> String,
    ) -> ExitCode {
        self.end_by(done, audit, |envelope| {
            output::print_result(self.format, envelope, || human(envelope))
        })
    }

    /// Audits the result of a verb and prints it by `print`; returns the exit status.
    fn end_by<B: Serialize>(
        self,
        done: Result<Envelope<B>, Error>,
        audit: &Audit,
        print: impl FnOnce(&Envelope<B>) -> Result<(), Error>,
    ) -> ExitCode {
        let envelope = match done {
            Ok(envelope) => envelope,
            Err(e) => return self.fail(&e, Some(audit)),
        };
        let status = envelope.error.as_ref().map_or(0, |error| error.exit_code);
        let audited = audit.end(&envelope, status);
        let printed = print(&envelope);
        // JSON has the error already, unless it is lost.
        let seen = self.format == Format::Json && printed.is_ok();
        if let (false, Some(error)) = (seen, &envelope.error) {
            output::print_error_lines(error);
        }
        exit_code(status, [audited, printed])
    }

    /// Prints and audits an error; returns the exit status.
    fn fail(self, error: &Error, audit: Option<&Audit>) -> ExitCode {
        let envelope = Envelope::failed(self.name, error).with_dry_run(self.dry_run);
        let body = ErrorBody::from(error);
        let audited = audit.map_or(Ok(()), |audit| audit.end(&envelope, body.exit_code));
        output::print_error(self.format, &body, &envelope);
        exit_code(body.exit_code, [audited])
    }
}

/// Returns the exit status of a command that ended with `status`. That a record or its output is
/// lost makes a success a failure, and never replaces the status of work that failed.
fn exit_code(mut status: u8, reported: impl IntoIterator<Item = Result<(), Error>>) -> ExitCode {
    for e in reported.into_iter().filter_map(Result::err) {
        let error = ErrorBody::from(&e);
        output::print_error_lines(&error);
        status = if status == 0 { error.exit_code } else { status };
    }
    ExitCode::from(status)
}

fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Error::system("epoll_create", "", e))?.block_on(work)
}

/// Reports a command line that clap refuses; as JSON if that was asked for.
fn usage_error(error: &clap::Error) -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let wants_json = arguments.iter().any(|a| a == "--output=json")
        || arguments.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    if error.use_stderr() && wants_json {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        let text = first.trim_start_matches("error: ").to_owned();
        let run = Run { name: named_command(&arguments), dry_run: false, format: Format::Json };
        return run.fail(&Error::Usage { text }, None);
    }
    let status = u8::try_from(error.exit_code()).unwrap_or(2);
    let printed = error.print().and_then(|()| io::stdout().flush());
    match printed {
        // Help and version. A reader that closes its end early has what it wanted.
        Err(source) if !error.use_stderr() && source.kind() != io::ErrorKind::BrokenPipe => {
            exit_code(status, [Err(Error::OutputLost { source })])
        }
        // If standard error is closed, it cannot be reported anywhere.
        _ => ExitCode::from(status),
    }
}

/// The command that a command line names, which may be wrong otherwise.
fn named_command(arguments: &[std::ffi::OsString]) -> &'static str {
    const NODE: [(&str, &str); 3] =
        [("enable", "node enable"), ("disable", "node disable"), ("status", "node status")];
    for pair in arguments.windows(2).filter(|pair| pair[0] == "node") {
        if let Some((_, name)) = NODE.iter().find(|(verb, _)| pair[1] == **verb) {
            return name;
        }
    }
    const NAMES: [&str; 9] = [
        "check",
        "hot-plug",
        "hot-unplug",
        "list",
        "inspect",
        "resize",
        "throttle",
        "stats",
        "repair",
    ];
    let is_named = |name: &&&str| arguments.iter().skip(1).any(|argument| argument == **name);
    NAMES.iter().find(is_named).copied().unwrap_or("ecr-runtime")
}

#[cfg(test)]
#[path = "command_line_tests.rs"]
mod tests;
