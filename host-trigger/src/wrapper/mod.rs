//! `ecr-qemu`: the program that Kata starts in place of QEMU (`path` in its configuration). It
//! gives QEMU a second monitor, which Kata's shim does not hold, and becomes QEMU
//! ([`execve(2)`](https://man7.org/linux/man-pages/man2/execve.2.html)): the process ID, the
//! descriptors, the cgroup, the standard streams and the signals stay.
//!
//! It never keeps a pod from starting. Whatever it cannot do it leaves out: QEMU starts with its
//! arguments unchanged, and one line says why. It fails as a shell would, with 127 or 126, only if
//! QEMU itself cannot be executed.
//!
//! | file | knows |
//! |---|---|
//! | `arguments` | what QEMU's arguments say of the sandbox |
//! | `monitor` | the socket in the sandbox's directory |
//! | `real_qemu` | which QEMU to execute |
//! | `journal` | where a line for the administrator goes |

mod arguments;
mod journal;
mod monitor;
mod real_qemu;

use std::{
    convert::Infallible,
    env,
    ffi::{CString, OsString},
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
};

use arguments::{Arguments, MONITOR_ID, SecondMonitor};
use journal::Journal;
use monitor::{Monitor, NoMonitor};

/// The directories with the sandboxes' own of Kata's two runtimes.
const SANDBOX_DIRS: [&str; 2] = ["/run/vc/vm", "/run/kata"];
/// Set for QEMU to the process ID. A wrapper that finds its own there was executed by a wrapper.
const MARK: &str = "ECR_QEMU_PROCESS";

/// Becomes QEMU. Returns only if that fails, with the exit status.
pub fn run(words: Vec<OsString>) -> u8 {
    let journal = Journal::new();
    let own = std::process::id().to_string();
    if env::var_os(MARK).is_some_and(|process| process == own.as_str()) {
        let name = words.first().cloned().unwrap_or_default();
        journal.error(&format!("{name:?} was executed by ecr-qemu in place of QEMU"));
        return 126;
    }
    let qemu = match real_qemu::find(&journal) {
        Ok(qemu) => qemu,
        Err(error) => {
            journal.error(&error.to_string());
            return 127;
        }
    };
    let mut passed: Vec<OsString> = words.into_iter().skip(1).collect();
    let monitor = match second_monitor(&passed) {
        Ok(monitor) => monitor,
        Err(why) => {
            journal.warning(&format!("no second monitor for {why}"));
            None
        }
    };
    if let Some(monitor) = &monitor {
        passed.extend(monitor.arguments(MONITOR_ID).map(OsString::from));
    }
    let Err(error) = execute(&qemu, passed, &own);
    if let Some(monitor) = monitor {
        monitor.remove();
    }
    journal.error(&format!("cannot execute {qemu:?}: {error}; {}", real_qemu::REMEDY));
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

/// Makes the second monitor of the sandbox that QEMU is started for; `None` where it is not started
/// for one, or has such a monitor.
fn second_monitor(passed: &[OsString]) -> Result<Option<Monitor>, NoMonitor> {
    let arguments = Arguments::of(passed);
    let Some(sandbox) = arguments.sandbox() else { return Ok(None) };
    match arguments.second_monitor() {
        SecondMonitor::None => {}
        SecondMonitor::Qmp => return Ok(None),
        SecondMonitor::Other => return Err(NoMonitor::path_is_taken(sandbox)),
    }
    let usual = SANDBOX_DIRS.map(|directory| Path::new(directory).join(&sandbox));
    let candidates: Vec<_> = arguments.directories(&sandbox).into_iter().chain(usual).collect();
    Monitor::listen(&sandbox, &candidates).map(Some)
}

/// Replaces this process by QEMU.
fn execute(qemu: &Path, passed: Vec<OsString>, own: &str) -> Result<Infallible, io::Error> {
    let c_string = |text: Vec<u8>| CString::new(text).map_err(io::Error::from);
    let program = c_string(qemu.as_os_str().as_bytes().to_vec())?;
    let words = std::iter::once(qemu.as_os_str().to_owned()).chain(passed);
    let words = words.map(|word| c_string(word.into_vec())).collect::<Result<Vec<_>, _>>()?;
    let kept = env::vars_os().filter(|(name, _)| name != MARK);
    let variables = kept
        .chain([(MARK.into(), own.into())])
        .map(|(name, value)| c_string([name.as_bytes(), b"=", value.as_bytes()].concat()));
    let variables = variables.collect::<Result<Vec<_>, _>>()?;
    Ok(nix::unistd::execve(&program, &words, &variables)?)
}
