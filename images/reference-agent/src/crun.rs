//! The container runtime, [`crun`](https://github.com/containers/crun/blob/main/crun.1.md), as a
//! child of the agent. Its exit status comes from the reaper and its messages from its log file,
//! because its standard streams are the container's.

use std::{
    ffi::OsStr,
    fs, io,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use crate::{
    error::{Error, at},
    reaper::{Expectation, Reaper, ended},
    streams::ChildStreams,
};

const CRUN: &str = "/usr/bin/crun";
/// The slowest command takes half a second in a guest without KVM.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs crun.
#[derive(Debug)]
pub(crate) struct Crun {
    reaper: Arc<Reaper>,
}

impl Crun {
    /// Uses `reaper` for its children.
    pub(crate) fn new(reaper: Arc<Reaper>) -> Self {
        Self { reaper }
    }

    /// Runs a command to its end, with its log in `directory`. The returned expectation has been
    /// held since before crun started, so a process that crun left to the agent can still be
    /// watched.
    ///
    /// # Errors
    /// crun cannot be started, fails, or does not end.
    pub(crate) async fn run<S: AsRef<OsStr>>(
        &self,
        directory: &Path,
        command: &str,
        arguments: &[S],
        streams: Option<ChildStreams>,
    ) -> Result<Expectation, Error> {
        let log = directory.join("crun.log");
        // crun appends to its log; keep only the messages of this command.
        match fs::remove_file(&log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(at("removing crun's log")(error));
            }
            _ => {}
        }
        let mut crun = Command::new(CRUN);
        crun.arg("--log").arg(&log).args(["--cgroup-manager", "cgroupfs", command]).args(arguments);
        match streams {
            Some(streams) => {
                crun.stdin(streams.stdin).stdout(streams.stdout).stderr(streams.stderr)
            }
            None => crun.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()),
        };
        let expectation = self.reaper.expect();
        let child = crun.spawn().map_err(at(format!("starting {CRUN}")))?;
        // Close the container's ends of the pipes here, or a reader never reads end of file.
        drop(crun);
        let mut exit = expectation.watch(child.id());
        let status = tokio::time::timeout(LIMIT, ended(&mut exit)).await.map_err(|_| {
            Error::TimedOut { awaited: format!("the end of crun {command}"), limit: LIMIT }
        })?;
        if status != 0 {
            let log = fs::read_to_string(&log).unwrap_or_default();
            return Err(Error::Crun {
                command: command.to_owned(),
                status,
                log: last_message(&log).to_owned(),
            });
        }
        Ok(expectation)
    }
}

/// Returns crun's last line, which is the reason.
fn last_message(log: &str) -> &str {
    log.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("its log is empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_reason() {
        assert_eq!(last_message("first\nopen `x`: No such file\n\n"), "open `x`: No such file");
        assert_eq!(last_message(""), "its log is empty");
    }
}
