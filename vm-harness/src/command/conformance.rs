//! `vm-harness conformance`: checks that an agent, on a kernel and a QEMU, plugs volumes correctly.

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
/// The highest port; the number above it is `VMADDR_PORT_ANY`.
const LAST_PORT: i64 = u32::MAX as i64 - 1;
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
    /// The agent's binary, taken with the shared libraries that it needs; it becomes PID 1 of the
    /// guest, and is never run on this machine [default: the reference agent]
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_AGENT")]
    agent: Option<PathBuf>,
    /// The agent's policy: .rego for kata-agent, .json for the reference agent
    #[arg(long, value_name = "FILE", env = "VM_HARNESS_POLICY")]
    policy: Option<PathBuf>,
    /// The vsock port on which the agent serves the plugin, if that is not the agent's own port
    /// (agent_plugin::serve)
    #[arg(
        long,
        value_name = "PORT",
        env = "VM_HARNESS_PLUGIN_PORT",
        value_parser = clap::value_parser!(u32).range(..=LAST_PORT)
    )]
    plugin_port: Option<u32>,
    /// The guest's kernel: the directory of an unpacked package, or a kernel that needs no modules
    /// [default: the kernel that ci/setup fetched]
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_KERNEL")]
    kernel: Option<PathBuf>,
    /// Directory whose files are added to the guest's root; shared libraries are searched there
    /// first
    #[arg(long, value_name = "DIR", env = "VM_HARNESS_INITRD_EXTRA")]
    initrd_extra: Option<PathBuf>,
    /// QEMU's binary
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_QEMU")]
    qemu: Option<PathBuf>,
    /// A further parameter of the kernel command line; may be repeated
    #[arg(long, value_name = "PARAMETER")]
    kernel_param: Vec<String>,
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
        let mut environment = Environment::from_variables();
        // Clap has read the variables, too.
        environment.overrides.agent.clone_from(&self.agent);
        environment.overrides.policy.clone_from(&self.policy);
        environment.overrides.kernel.clone_from(&self.kernel);
        environment.plugin_port = self.plugin_port.map(|port| port.to_string());
        environment.overrides.extra = self.initrd_extra.iter().cloned().collect();
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
