//! `vm-harness logs`: the last messages of the guest's kernel, its agent, QEMU, and the vsock back
//! end of a sandbox.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Args;
use vm_harness::{Error, RunningVm, printable};

/// Which sandbox, and how many lines.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness logs -n 10")]
pub(crate) struct Logs {
    /// The run directory that `boot` printed; not needed if there is only one sandbox
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// How many lines of each to print
    #[arg(long, short = 'n', value_name = "N", default_value_t = 40)]
    lines: usize,
}

impl Logs {
    pub(crate) fn run(&self) -> Result<ExitCode, Error> {
        let vm = RunningVm::find(self.run_dir.as_deref())?;
        let console = vm.console();
        let path = console.path().display().to_string();
        show("console", &path, &console.tail(self.lines));
        show("agent and programs", &path, &console.tail_of_programs(self.lines));
        for (program, path) in vm.messages() {
            let text = fs::read(&path).map_err(|source| Error::File {
                action: "read",
                path: path.clone(),
                source,
            })?;
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            show(
                program,
                &path.display().to_string(),
                &lines[lines.len().saturating_sub(self.lines)..].join("\n"),
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(source: &str, path: &str, text: &str) {
    println!("==> {source} ({path}) <==");
    match text.trim_end() {
        "" => println!("(nothing)\n"),
        text => println!("{}\n", printable(text)),
    }
}
