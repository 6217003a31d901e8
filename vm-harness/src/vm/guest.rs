//! A running guest that may die: every wait for it then ends immediately, with the reason.

use std::{future::Future, time::Duration};

use crate::{Accelerator, Console, Error, Origin, Process, ProcessStat};

/// The target of the trace events whose field `awaited` says what the harness waits for.
pub const WAIT_EVENTS: &str = "vm_harness::wait";

/// How long QEMU may run on after a server of its devices, if that ended because QEMU did.
const AFTER_SERVER: Duration = Duration::from_secs(1);

/// A running guest: its QEMU, its console, and the factor on time limits.
#[derive(Debug)]
pub struct Guest {
    /// QEMU, or the first process of the namespaces in which libvirt runs it.
    pub(crate) qemu: Process,
    /// QEMU's process ID.
    pub(crate) qemu_id: u32,
    /// vhost-device-vsock, unless the kernel is the back end.
    pub(crate) vsock: Option<Process>,
    /// virtiofsd, if it shares a directory of the host.
    pub(crate) share: Option<Process>,
    pub(crate) console: Console,
    pub(crate) accelerator: Accelerator,
    pub(crate) time_scale: u32,
    pub(crate) origin: Origin,
}

impl Guest {
    /// Returns QEMU's process ID.
    pub fn qemu_id(&self) -> u32 {
        self.qemu_id
    }

    /// Returns the processor time that QEMU used so far.
    pub fn qemu_time(&self) -> Option<Duration> {
        ProcessStat::of(self.qemu_id)?.processor_time()
    }

    /// Returns QEMU's accelerator.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// Returns the factor on every time limit.
    pub fn time_scale(&self) -> u32 {
        self.time_scale
    }

    /// Returns whether it was booted or restored.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns the server of a directory that the host shares by virtio-fs.
    pub fn share(&self) -> Option<&Process> {
        self.share.as_ref()
    }

    /// Returns the guest's console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Waits until QEMU has ended, and returns its exit status.
    pub async fn ended(&self) -> std::process::ExitStatus {
        self.qemu.ended().await
    }

    /// Scales a time limit for this machine; `limit` is the value for KVM.
    pub fn scaled(&self, limit: Duration) -> Duration {
        limit * self.time_scale
    }

    /// Waits for `work`, up to `limit` (scaled).
    ///
    /// # Errors
    /// The guest, or a server of its devices, ended, or the limit passed.
    pub async fn wait_for<T>(
        &self,
        awaited: &str,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        tracing::debug!(target: WAIT_EVENTS, awaited);
        let limit = self.scaled(limit);
        tokio::select! {
            result = tokio::time::timeout(limit, work) => result.map_err(|_| Error::TimedOut {
                awaited: awaited.to_owned(),
                limit,
                report: self.report(),
            }),
            status = self.qemu.ended() => Err(self.failure(&self.qemu, status, awaited)),
            (server, status) = self.server_ended() => {
                // The servers end with QEMU, and the end of QEMU may be reported after theirs.
                match tokio::time::timeout(self.scaled(AFTER_SERVER), self.qemu.ended()).await {
                    Ok(status) => Err(self.failure(&self.qemu, status, awaited)),
                    Err(_) => Err(self.failure(server, status, awaited)),
                }
            }
        }
    }

    /// Waits until a server of QEMU's devices has ended.
    async fn server_ended(&self) -> (&Process, std::process::ExitStatus) {
        tokio::select! {
            vsock = ended(self.vsock.as_ref()) => vsock,
            share = ended(self.share.as_ref()) => share,
        }
    }

    /// Returns the programs that serve QEMU's devices.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Process> {
        self.vsock.iter().chain(&self.share)
    }

    fn failure(&self, process: &Process, status: std::process::ExitStatus, awaited: &str) -> Error {
        Error::Ended {
            program: process.program(),
            status: status.to_string(),
            awaited: awaited.to_owned(),
            report: self.report(),
        }
    }

    /// Returns the report for a failure: the end of the console with a fault of the kernel, QEMU's
    /// messages, and the commands that start the same VM.
    pub fn report(&self) -> String {
        let messages = |process: &Process| {
            format!("--- {}'s messages\n{}\n", process.program(), process.stderr().trim_end())
        };
        format!(
            "--- {}: the console's last lines ({})\n{}\n{}{}--- to repeat it\n{}{}\n",
            self.origin,
            self.console.path().display(),
            self.console.end_with_fault(40),
            messages(&self.qemu),
            self.servers().map(messages).collect::<String>(),
            self.servers().map(|server| format!("{} &\n", server.command())).collect::<String>(),
            self.qemu.command(),
        )
    }
}

/// Waits until the server has ended; never returns if there is none.
async fn ended(server: Option<&Process>) -> (&Process, std::process::ExitStatus) {
    match server {
        Some(server) => (server, server.ended().await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;

    fn shell(program: &'static str, script: &str, directory: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(program, command, &directory.join(program)).unwrap()
    }

    /// Both have ended when the wait begins, or the server has and QEMU follows, or QEMU goes on.
    #[rstest::rstest]
    #[case::both("exit 3", "QEMU")]
    #[case::qemu_follows("sleep 0.3; exit 3", "QEMU")]
    #[case::qemu_goes_on("exec sleep 1000", "server")]
    #[tokio::test]
    async fn end_of_qemu_is_the_reason_if_its_server_ended_too(
        #[case] qemu: &str,
        #[case] expected: &str,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let qemu_process = shell("QEMU", qemu, directory.path());
        let guest = Guest {
            qemu_id: qemu_process.id(),
            qemu: qemu_process,
            vsock: Some(shell("server", "exit 0", directory.path())),
            share: None,
            console: Console::new(directory.path().join("console")),
            accelerator: Accelerator::Kvm,
            time_scale: 1,
            origin: Origin::Restored,
        };
        ended(guest.vsock.as_ref()).await;
        if qemu == "exit 3" {
            guest.qemu.ended().await;
        }
        // More than once: the order of two ends that are known is chosen at random.
        for _ in 0..20 {
            let work = std::future::pending::<()>();
            let error = guest.wait_for("a reply", Duration::from_secs(60), work).await.unwrap_err();
            let Error::Ended { program, .. } = error else { panic!("{error:?}") };
            assert_eq!(program, expected);
            if expected == "server" {
                break;
            }
        }
    }
}
