//! SIGINT and SIGTERM: the first one starts the undo, a second one ends the process at once. See
//! [`signal(7)`](https://man7.org/linux/man-pages/man7/signal.7.html).

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Error;

/// Catches both signals from its creation on.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn catch() -> Result<Self, Error> {
        let catch = |kind| signal(kind).map_err(|e| Error::system("sigaction", "", e));
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// The next one, as the error that it makes of the command.
    pub(crate) async fn next(&mut self) -> Error {
        tokio::select! {
            _ = self.interrupt.recv() => Error::Interrupted { signal: libc::SIGINT, name: "SIGINT" },
            _ = self.terminate.recv() => Error::Interrupted { signal: libc::SIGTERM, name: "SIGTERM" },
        }
    }
}
