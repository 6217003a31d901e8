//! `vm-harness conformance`: checks that an agent, on a kernel and a QEMU, plugs volumes correctly.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use vm_harness::{
    Error,
    conformance::{Conformance, Event, Explanation, GROUPS, Mode, Outcome, Report, Verdict},
};

use super::guest_options::GuestOptions;

/// No check failed.
const CONFORMS: u8 = 0;
/// A check failed.
const FAILED: u8 = 1;
/// How many characters of a line of a log are shown.
const LONGEST_LINE: usize = 300;
/// Checks could not be run, because something is missing or broken.
const BROKEN: u8 = 2;

/// What is checked, and on what.
#[derive(Debug, Args)]
#[command(
    before_help = "Example: vm-harness conformance --agent ./kata-agent --policy ./policy.rego \
                   --report ./report",
    after_help = "Exit status: 0 no check failed, 1 a check failed, 2 checks could not be run (a \
                  file is missing, QEMU does not start, the guest does not boot) or the command \
                  line is invalid."
)]
pub(crate) struct ConformanceCommand {
    #[command(flatten)]
    guest: GuestOptions,
    /// Only this kind of guest; may be repeated
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Vec<Mode>,
    /// Only checks with this text in their name; may be repeated
    #[arg(long, value_name = "TEXT")]
    check: Vec<String>,
    /// The --timeout of ecr-runtime for a hot-plug or a hot-unplug
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Write conformance.json and conformance.xml (JUnit) to this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Print the checks and what each proves, and run none
    #[arg(long)]
    list: bool,
    /// Print what a check proves, what usually breaks it, and where to look, and run none
    #[arg(long, value_name = "CHECK")]
    explain: Option<String>,
}

impl ConformanceCommand {
    pub(crate) async fn run(self) -> ExitCode {
        if self.list {
            for check in GROUPS.iter().flat_map(|group| group.checks) {
                println!("{:<55} {}", check.name(), check.purpose());
            }
            return ExitCode::from(CONFORMS);
        }
        let result = match &self.explain {
            Some(name) => Explanation::of(name).map(|text| {
                print!("{text}");
                CONFORMS
            }),
            None => self.check().await,
        };
        match result {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                eprintln!("error: {}", error.chain());
                ExitCode::from(BROKEN)
            }
        }
    }

    async fn check(&self) -> Result<u8, Error> {
        let suite = self.suite();
        if suite.checks().next().is_none() {
            return Err(Error::NoCheck { wanted: self.check.join(", ") });
        }
        if let Some(directory) = &self.report {
            // Before the run, which takes minutes, so that an error comes early.
            fs::create_dir_all(directory).map_err(|source| file("make", directory, source))?;
        }
        let start = Instant::now();
        let report = suite.run(&mut |event| print(&event)).await;
        println!("\n{} ({:.1} s)", report.counts(), start.elapsed().as_secs_f64());
        if let Some(directory) = &self.report {
            write(&report, directory)?;
        }
        Ok(status(&report))
    }

    fn suite(&self) -> Conformance {
        let all = Conformance::new(self.guest.environment());
        Conformance {
            modes: if self.mode.is_empty() { all.modes.clone() } else { self.mode.clone() },
            kernel_parameters: self.guest.kernel_param.clone(),
            only: self.check.clone(),
            timeout: Duration::from_secs(self.timeout),
            ..all
        }
    }
}

fn status(report: &Report) -> u8 {
    match (report.broken(), report.counts().failed) {
        (Some(_), _) => BROKEN,
        (None, 0) => CONFORMS,
        (None, _) => FAILED,
    }
}

fn print(event: &Event<'_>) {
    match event {
        Event::Subject(subject) => println!("{subject}"),
        Event::Booted(mode, time) => {
            println!(
                "\n{} ({}), booted in {:.1} s",
                mode.name(),
                mode.description(),
                time.as_secs_f64()
            );
        }
        Event::Outcome(_, outcome) => {
            println!("  {outcome}");
            print_logs(outcome);
        }
        Event::ModeEnds(mode) => {
            if let Some(broken) = &mode.broken {
                eprintln!("error: {} ({}): {broken}", mode.mode.name(), mode.mode.description());
            }
        }
    }
}

/// Prints the logs of a check that failed, and where to read on.
fn print_logs(outcome: &Outcome) {
    let Verdict::Failed { agent_log, kernel_log, .. } = &outcome.verdict else { return };
    const INDENT: &str = "                   ";
    for (whose, log) in [("agent", agent_log), ("kernel", kernel_log)] {
        if log.is_empty() {
            println!("{INDENT}the {whose} printed nothing");
            continue;
        }
        println!("{INDENT}the {whose}'s last lines:");
        log.lines()
            .for_each(|line| println!("{INDENT}| {}", shortened(&line.escape_debug().to_string())));
    }
    println!("{INDENT}more: vm-harness conformance --explain {}", outcome.name);
}

/// Cuts a line of a log that a terminal would not show as a line: kata-agent's are JSON.
fn shortened(line: &str) -> String {
    match line.char_indices().nth(LONGEST_LINE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn write(report: &Report, directory: &Path) -> Result<(), Error> {
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    for (name, text) in [("conformance.json", json), ("conformance.xml", report.junit())] {
        let path = directory.join(name);
        fs::write(&path, text).map_err(|source| file("write", &path, source))?;
    }
    Ok(())
}

fn file(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_of_a_log_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = "ü".repeat(LONGEST_LINE + 1);
        assert_eq!(shortened(&long).chars().count(), LONGEST_LINE + 1);
        assert!(shortened(&long).ends_with("ü…"));
    }
}
