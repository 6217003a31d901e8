//! The errors of the QMP client.

use std::{io, path::PathBuf};

use crate::Untrusted;

/// Why a command got no reply, or which error QEMU replied.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// No process listens on the socket.
    #[error("cannot connect to QEMU's socket {path:?}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of `connect`.
        source: io::Error,
    },
    /// Another client, which was seen, holds the socket.
    #[error("QEMU's socket {path:?} is held by another client")]
    Held {
        /// The socket.
        path: PathBuf,
    },
    /// No greeting came, and no other client was seen: QEMU is stopped.
    #[error("QEMU sends no greeting on {path:?}")]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody else than root, or than the VMM's user, could have put the socket there, or serves
    /// it.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// The server closed the connection or sent something else than a greeting.
    #[error("the server on {path:?} does not speak QMP")]
    NotQmp {
        /// The socket.
        path: PathBuf,
    },
    /// No reply came in time. The connection cannot be used any more.
    #[error("QEMU did not answer {command} in time")]
    TimedOut {
        /// The command.
        command: String,
    },
    /// The connection ended, or an earlier command was interrupted.
    #[error("the connection to QEMU ended before {command} was answered")]
    Disconnected {
        /// The command.
        command: String,
    },
    /// QEMU refused the command.
    #[error("QEMU refuses {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's description of the error.
        description: String,
    },
    /// The reply does not have the documented form.
    #[error("QEMU's reply to {command} does not have the documented form")]
    Answer {
        /// The command.
        command: String,
    },
}

impl QmpError {
    /// Whether the caller must connect again before the next command.
    pub fn ends_connection(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Disconnected { .. })
    }

    /// Returns QEMU's description of the error if it refused the command.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { description, .. } => Some(description),
            _ => None,
        }
    }
}
