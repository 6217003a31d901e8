//! How a guest came to run: by a boot, or restored from a file.

use std::fmt;

/// How a guest came to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It was booted; the text says why it was not restored.
    Booted(String),
    /// It was restored from a file.
    Restored,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Booted(reason) => write!(formatter, "booted ({reason})"),
            Self::Restored => formatter.write_str("restored"),
        }
    }
}
