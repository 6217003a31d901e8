//! Commands as processes: started by a shell with limits, ignored signals or other standard
//! streams, or so that a signal can be sent.

use std::process::Stdio;

use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// Returns `command`, run by a shell that executes `prelude` first.
pub fn after(prelude: &str, command: &Command) -> Command {
    let command = command.as_std();
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{prelude}\nexec \"$0\" \"$@\"")]).arg(command.get_program());
    shell.args(command.get_args()).kill_on_drop(true);
    shell
}

/// Starts `command` with pipes as its output.
pub fn start(command: &mut Command) -> (Child, Pid) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    (child, pid)
}

/// Runs `command` with this standard output; returns its exit status and its standard error.
pub async fn run_to(command: &mut Command, stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let child = command.stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output());
    let output = output.await.expect("the command ends").unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}
