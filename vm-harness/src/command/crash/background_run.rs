//! A command that runs in the background.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::Child;
use vm_harness::{Finished, ProcessStat};

use super::fixture::Fixture;

/// A started command.
pub(super) struct BackgroundRun {
    child: Child,
    pub(super) process: Pid,
}

impl BackgroundRun {
    pub(super) fn new(child: Child) -> Result<Self, String> {
        let process = child.id().ok_or("the run has ended already")?;
        Ok(Self { child, process: Pid::from_raw(process.cast_signed()) })
    }

    /// Continues a stopped process, and waits until it has ended.
    pub(super) async fn resume(self, fixture: &Fixture) -> Result<Finished, String> {
        signal(self.process, Signal::SIGCONT)?;
        self.wait(fixture).await
    }

    /// Waits until the process has ended.
    pub(super) async fn wait(self, fixture: &Fixture) -> Result<Finished, String> {
        let limit = fixture.sandbox.guest().scaled(Duration::from_secs(30));
        let output = tokio::time::timeout(limit, self.child.wait_with_output()).await;
        let output = output.map_err(|_| format!("the run did not end within {limit:?}"))?;
        Ok(Finished::new(&output.map_err(|error| error.to_string())?, Duration::ZERO))
    }

    /// Waits until the process is in this state of `/proc/PID/stat`.
    pub(super) async fn until_state(&self, fixture: &Fixture, state: char) -> Result<(), String> {
        let process = self.process;
        let limit = fixture.sandbox.guest().scaled(Duration::from_secs(20));
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let found = ProcessStat::of(process.as_raw().cast_unsigned()).map(|stat| stat.state);
            match found {
                Some(found) if found == state => return Ok(()),
                None | Some('Z') => {
                    return Err(format!("process {process} ended before it was in state {state}"));
                }
                Some(found) if tokio::time::Instant::now() > deadline => {
                    return Err(format!("process {process} is in state {found}, not in {state}"));
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }
}

/// Sends a signal.
pub(super) fn signal(process: Pid, signal: Signal) -> Result<(), String> {
    kill(process, signal).map_err(|errno| format!("{signal} to {process}: {errno}"))
}
