//! What goes wrong between this program and QEMU.

use std::{io, path::PathBuf};

/// Why QEMU could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens there.
    #[error("cannot connect to QEMU's socket {path:?}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What `connect` said.
        source: io::Error,
    },
    /// The socket is another client's, who was seen.
    #[error("QEMU's socket {path:?} is held by another client")]
    Held {
        /// The socket.
        path: PathBuf,
    },
    /// No greeting, and no other client was seen: a stopped QEMU.
    #[error("QEMU sends no greeting on {path:?}")]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// It closed the connection or sent something else.
    #[error("what listens on {path:?} is no QMP server")]
    NotQmp {
        /// The socket.
        path: PathBuf,
    },
    /// No reply in time. The connection is of no use any more.
    #[error("QEMU did not answer {command} in time")]
    TimedOut {
        /// The command.
        command: String,
    },
    /// The connection ended, or an earlier command was cut short.
    #[error("the connection to QEMU ended before {command} was answered")]
    Disconnected {
        /// The command.
        command: String,
    },
    /// QEMU refused.
    #[error("QEMU refuses {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's text.
        description: String,
    },
    /// The reply does not have the documented form.
    #[error("QEMU's answer to {command} is not understood")]
    Answer {
        /// The command.
        command: String,
    },
    /// This client's table does not list the command.
    #[error("the command {command} is not in this client's table")]
    Unlisted {
        /// The command.
        command: String,
    },
}

impl QmpError {
    /// Must the caller connect anew before the next command?
    pub fn ends_connection(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Disconnected { .. })
    }

    /// QEMU's text, where it refused.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { description, .. } => Some(description),
            _ => None,
        }
    }
}
