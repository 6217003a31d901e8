//! Lines on standard error. `eprintln!` panics when standard error is closed; a closed standard
//! error must not stop a rollback, so write errors are ignored here.

use std::io::Write;

use crate::sanitize::sanitize;

/// Writes a line to standard error.
pub(crate) fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The step log of `--verbose`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepLog {
    /// Whether steps are logged.
    pub(crate) enabled: bool,
}

impl StepLog {
    /// Logs a step; `text` is only evaluated if steps are logged.
    pub(crate) fn step(self, text: impl FnOnce() -> String) {
        if self.enabled {
            line(&sanitize(&text()));
        }
    }
}
