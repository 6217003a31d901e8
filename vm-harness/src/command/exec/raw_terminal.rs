//! Raw mode of the caller's terminal, in which every key is passed to the terminal in the container
//! ([termios(3)](https://man7.org/linux/man-pages/man3/termios.3.html)).

use std::io::{self, stdin};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use vm_harness::TerminalSize;

/// The terminal is in raw mode until this value is dropped.
pub(super) struct RawTerminal(Termios);

impl RawTerminal {
    /// Switches standard input to raw mode.
    ///
    /// # Errors
    /// Standard input is not a terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self(before))
    }

    /// Returns the size of the terminal, or 24 lines of 80 characters if it has none.
    pub(super) fn size() -> TerminalSize {
        match tcgetwinsize(stdin()) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
                TerminalSize { rows: size.ws_row, columns: size.ws_col }
            }
            _ => TerminalSize { rows: 24, columns: 80 },
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // An error means that the terminal is gone.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}
