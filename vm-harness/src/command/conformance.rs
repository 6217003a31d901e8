//! `vm-harness conformance`: does this agent, on this kernel and this QEMU, plug volumes as it
//! should?

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use vm_harness::{
    Environment, Error,
    conformance::{Conformance, Event, GROUPS, Mode, Report, Verdict},
};

/// No check failed.
const CONFORMS: u8 = 0;
/// A check failed.
const FAILED: u8 = 1;
/// The number above it stands for any port.
const LAST_PORT: i64 = u32::MAX as i64 - 1;
/// Something is missing or broken, so that checks were not run.
const BROKEN: u8 = 2;

/// What is checked, and on what.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 no check failed, 1 a check failed, 2 checks could not be run (a file is missing, QEMU does not \
                        start, the guest does not come up) or the command line is wrong."
)]
pub(crate) struct ConformanceCommand {
    /// The agent's binary, with the shared libraries that it needs; it becomes PID 1 of the guest,
    /// and is never run on this machine [default: the reference agent]
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_AGENT")]
    agent: Option<PathBuf>,
    /// The agent's policy: .rego for kata-agent, .json for the reference agent
    #[arg(long, value_name = "FILE", env = "VM_HARNESS_POLICY")]
    policy: Option<PathBuf>,
    /// The vsock port on which the agent serves the plugin, where that is not its own server's
    /// (agent_plugin::serve)
    #[arg(long, value_name = "PORT", env = "VM_HARNESS_PLUGIN_PORT", value_parser = clap::value_parser!(u32).range(..=LAST_PORT))]
    plugin_port: Option<u32>,
    /// The guest's kernel: the directory of an unpacked package, or a kernel that needs no modules
    /// [default: that of ci/setup]
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_KERNEL")]
    kernel: Option<PathBuf>,
    /// Directory that is laid over the guest's root; shared libraries are looked for there first
    #[arg(long, value_name = "DIR", env = "VM_HARNESS_INITRD_EXTRA")]
    initrd_extra: Option<PathBuf>,
    /// QEMU's binary
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_QEMU")]
    qemu: Option<PathBuf>,
    /// A further word of the kernel command line; may be repeated
    #[arg(long, value_name = "WORD")]
    kernel_param: Vec<String>,
    /// Only this kind of guest; may be repeated
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Vec<Mode>,
    /// Only checks with this in their name; may be repeated
    #[arg(long, value_name = "TEXT")]
    check: Vec<String>,
    /// Time that ecr-runtime has for a plug or an unplug
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
    /// Writes conformance.json and conformance.xml (JUnit) there
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Prints the checks and what each proves, and runs none
    #[arg(long)]
    list: bool,
}

impl ConformanceCommand {
    pub(crate) async fn run(self) -> ExitCode {
        if self.list {
            for check in GROUPS.iter().flat_map(|group| group.checks) {
                println!("{:<55} {}", check.name(), check.purpose());
            }
            return ExitCode::from(CONFORMS);
        }
        match self.check().await {
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
            // Not at the end of a run of minutes.
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
        let mut environment = Environment::from_variables();
        // Clap has looked at the variables, too.
        environment.parts.agent.clone_from(&self.agent);
        environment.parts.policy.clone_from(&self.policy);
        environment.parts.kernel.clone_from(&self.kernel);
        environment.plugin_port = self.plugin_port.map(|port| port.to_string());
        environment.parts.extra = self.initrd_extra.iter().cloned().collect();
        if let Some(qemu) = &self.qemu {
            environment.qemu.clone_from(qemu);
        }
        let all = Conformance::new(environment);
        Conformance {
            modes: if self.mode.is_empty() { all.modes.clone() } else { self.mode.clone() },
            kernel_parameters: self.kernel_param.clone(),
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
            if let Verdict::Failed { console, .. } = &outcome.verdict {
                println!("                   the console's last lines:");
                console
                    .lines()
                    .for_each(|line| println!("                   | {}", line.escape_debug()));
            }
        }
        Event::ModeEnds(mode) => {
            if let Some(broken) = &mode.broken {
                eprintln!("error: {} ({}): {broken}", mode.mode.name(), mode.mode.description());
            }
        }
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
