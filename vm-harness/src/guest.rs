//! The guest as something that can die: every wait for it ends at once when it does, with the reason.

use std::{future::Future, time::Duration};

use crate::{Accelerator, Console, Error, Origin, Process};

/// The target of the trace events that tell by `awaited` what is waited for.
pub const AWAITS: &str = "vm_harness::awaits";

/// A running guest: its QEMU, its console, and the factor on time-outs.
#[derive(Debug)]
pub struct Guest {
    pub(crate) qemu: Process,
    pub(crate) vsock: Process,
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
        }
    }

    fn failure(&self, process: &Process, status: std::process::ExitStatus, awaited: &str) -> Error {
        Error::Ended {
            program: process.program(),
            status: status.to_string(),
            awaited: awaited.to_owned(),
            report: self.report(),
        }
    }

    /// What a person needs after a failure: the console's end, QEMU's messages, and how to repeat it.
    pub fn report(&self) -> String {
        format!(
            "--- {}: the console's last lines ({})\n{}\n--- QEMU's messages\n{}\n--- vhost-device-vsock's messages\n{}\n--- to repeat \
             it\n{} &\n{}\n",
            self.origin,
            self.console.path().display(),
            self.console.tail(40),
            self.qemu.stderr().trim_end(),
            self.vsock.stderr().trim_end(),
            self.vsock.command(),
            self.qemu.command(),
        )
    }
}
