//! SIGINT, SIGTERM and SIGHUP: the first one starts the rollback, a second one ends the process
//! immediately. One that was ignored when the process was started (`nohup`, a command in the
//! background of a shell without job control) stays ignored. See
//! [`signal(7)`](https://man7.org/linux/man-pages/man7/signal.7.html).

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Error;

/// The signals, caught since this was created.
#[derive(Debug)]
pub(crate) struct Signals {
    /// `None` if it stays ignored, like the others.
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hang_up: Option<Signal>,
}

impl Signals {
    pub(crate) fn catch() -> Result<Self, Error> {
        let status = fs::read("/proc/self/status").unwrap_or_default();
        let catch = |kind: SignalKind| {
            let caught = !is_ignored(&status, kind.as_raw_value());
            let caught = caught.then(|| signal(kind)).transpose();
            caught.map_err(|e| Error::system("sigaction", "", e))
        };
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hang_up: catch(SignalKind::hangup())?,
        })
    }

    /// Awaits `work`. If a signal arrives first, `work` is dropped.
    pub(crate) async fn unless_caught<T>(
        &mut self,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            done = work => done,
            interrupted = self.next() => Err(interrupted),
        }
    }

    /// Awaits the next signal; returns it as the command's error.
    pub(crate) async fn next(&mut self) -> Error {
        tokio::select! {
            () = received(self.interrupt.as_mut()) => Error::Interrupted { signal: libc::SIGINT, name: "SIGINT" },
            () = received(self.terminate.as_mut()) => Error::Interrupted { signal: libc::SIGTERM, name: "SIGTERM" },
            () = received(self.hang_up.as_mut()) => Error::Interrupted { signal: libc::SIGHUP, name: "SIGHUP" },
        }
    }
}

/// Awaits `signal`; forever if it is ignored.
async fn received(signal: Option<&mut Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether `signal` is in the mask `SigIgn` of
/// [`/proc/PID/status`](https://man7.org/linux/man-pages/man5/proc_pid_status.5.html).
fn is_ignored(status: &[u8], signal: i32) -> bool {
    // The name of the program in it may have any bytes.
    let mut lines = status.split(|&byte| byte == b'\n');
    let mask = lines.find_map(|line| line.strip_prefix(b"SigIgn:"));
    let mask = mask.and_then(|mask| std::str::from_utf8(mask.trim_ascii()).ok());
    let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok());
    mask.is_some_and(|mask| mask & 1 << (signal - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        assert!(is_ignored(
            b"Name:\t\xff\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n",
            libc::SIGHUP
        ));
        assert!(!is_ignored(b"SigIgn:\t0000000000001000\n", libc::SIGHUP));
        assert!(!is_ignored(b"", libc::SIGHUP));
    }
}
