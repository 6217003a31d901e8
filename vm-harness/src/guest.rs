//! The guest as something that can die: every wait for it ends at once when it does, with the
//! reason.

use std::{future::Future, time::Duration};

use crate::{Accelerator, Console, Error, Origin, Process};

/// The target of the trace events that tell by `awaited` what is waited for.
pub const AWAITS: &str = "vm_harness::awaits";

/// A running guest: its QEMU, its console, and the factor on time-outs.
#[derive(Debug)]
pub struct Guest {
    pub(crate) qemu: Process,
    pub(crate) vsock: Process,
    /// virtiofsd, where a directory of the host is shared by it.
    pub(crate) share: Option<Process>,
    pub(crate) console: Console,
    pub(crate) accelerator: Accelerator,
    pub(crate) time_scale: u32,
    pub(crate) origin: Origin,
}

impl Guest {
    /// QEMU's process id.
    pub fn qemu_id(&self) -> u32 {
        self.qemu.id()
    }

    /// The processor's time that QEMU took so far.
    pub fn qemu_time(&self) -> Option<Duration> {
        self.qemu.processor_time()
    }

    /// QEMU's accelerator.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// The factor on every time-out.
    pub fn time_scale(&self) -> u32 {
        self.time_scale
    }

    /// Whether it was booted or restored.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The server of the directory that the host shares by virtio-fs.
    pub fn share(&self) -> Option<&Process> {
        self.share.as_ref()
    }

    /// What the guest prints.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Returns when QEMU has ended.
    pub async fn ended(&self) -> std::process::ExitStatus {
        self.qemu.ended().await
    }

    /// `limit` as it is on a machine with KVM, scaled for this one.
    pub fn scaled(&self, limit: Duration) -> Duration {
        limit * self.time_scale
    }

    /// Waits for `work`, up to `limit` (scaled).
    ///
    /// # Errors
    /// The guest ended, or the limit passed.
    pub async fn wait_for<T>(
        &self,
        awaited: &str,
        limit: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        tracing::debug!(target: AWAITS, awaited);
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

    /// Never returns where there is none.
    async fn share_ended(&self) -> (&Process, std::process::ExitStatus) {
        match &self.share {
            Some(share) => (share, share.ended().await),
            None => std::future::pending().await,
        }
    }

    /// The programs that serve QEMU's devices.
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

    /// What a person needs after a failure: the console's end, QEMU's messages, and how to repeat
    /// it.
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
