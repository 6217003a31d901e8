//! The caller's own terminal while another one is used through it: in raw mode, every key goes
//! there ([termios(3)](https://man7.org/linux/man-pages/man3/termios.3.html)).

use std::io::{self, stdin};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use vm_harness::TerminalSize;

/// Raw for as long as it lives.
pub(super) struct RawTerminal(Termios);

impl RawTerminal {
    /// Makes standard input raw.
    ///
    /// # Errors
    /// It is no terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self(before))
    }

    /// Its size; that of the oldest terminals where it has none.
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
        // A terminal that is gone needs no care.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}
