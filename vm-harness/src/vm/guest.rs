//! A running guest that may die: every wait for it then ends immediately, with the reason.

use std::{future::Future, time::Duration};

use crate::{Accelerator, Console, Error, Origin, Process};

/// The target of the trace events whose field `awaited` says what the harness waits for.
pub const WAIT_EVENTS: &str = "vm_harness::wait";

/// A running guest: its QEMU, its console, and the factor on time limits.
#[derive(Debug)]
pub struct Guest {
    pub(crate) qemu: Process,
    pub(crate) vsock: Process,
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
        self.qemu.id()
    }

    /// Returns the processor time that QEMU used so far.
    pub fn qemu_time(&self) -> Option<Duration> {
        self.qemu.processor_time()
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
            status = self.vsock.ended() => Err(self.failure(&self.vsock, status, awaited)),
            (share, status) = self.share_ended() => Err(self.failure(share, status, awaited)),
        }
    }

    /// Waits until virtiofsd has ended; never returns if there is none.
    async fn share_ended(&self) -> (&Process, std::process::ExitStatus) {
        match &self.share {
            Some(share) => (share, share.ended().await),
            None => std::future::pending().await,
        }
    }

    /// Returns the programs that serve QEMU's devices.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.vsock).chain(&self.share)
    }

    fn failure(&self, process: &Process, status: std::process::ExitStatus, awaited: &str) -> Error {
        Error::Ended {
            program: process.program(),
            status: status.to_string(),
            awaited: awaited.to_owned(),
            report: self.report(),
        }
    }

    /// Returns the report for a failure: the end of the console, QEMU's messages, and the commands
    /// that start the same VM.
    pub fn report(&self) -> String {
        let messages = |process: &Process| {
            format!("--- {}'s messages\n{}\n", process.program(), process.stderr().trim_end())
        };
        format!(
            "--- {}: the console's last lines ({})\n{}\n{}{}--- to repeat it\n{}{}\n",
            self.origin,
            self.console.path().display(),
            self.console.tail(40),
            messages(&self.qemu),
            self.servers().map(messages).collect::<String>(),
            self.servers().map(|server| format!("{} &\n", server.command())).collect::<String>(),
            self.qemu.command(),
        )
    }
}
