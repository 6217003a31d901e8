//! `vm-harness logs`: the last words of everybody in a sandbox: the guest's kernel, its agent,
//! QEMU, the vsock back end.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Args;
use vm_harness::{Error, Held, printable};

/// Whose words, and how many.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The run directory that `boot` printed; not needed where there is one sandbox alone
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// The last N lines of each
    #[arg(long, short = 'n', value_name = "N", default_value_t = 40)]
    lines: usize,
}

impl Logs {
    pub(crate) fn run(&self) -> Result<ExitCode, Error> {
        let held = Held::find(self.run_dir.as_deref())?;
        let console = held.console();
        let place = console.path().display().to_string();
        show("console", &place, &console.tail(self.lines));
        show("agent and programs", &place, &console.tail_of_programs(self.lines));
        for (program, path) in held.messages() {
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

fn show(whose: &str, place: &str, text: &str) {
    println!("==> {whose} ({place}) <==");
    match text.trim_end() {
        "" => println!("(nothing)\n"),
        text => println!("{}\n", printable(text)),
    }
}
