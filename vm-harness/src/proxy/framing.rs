//! How a stream of bytes becomes messages.

use std::fmt;

use serde_json::Value;

use super::message::Message;

/// Who sent a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `ecr-runtime`, or another client of the proxy.
    Client,
    /// QEMU or the agent.
    Server,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

/// The first message of some bytes.
#[derive(Debug)]
pub struct Frame {
    pub(super) length: usize,
    /// `None` if no rule can name it.
    pub(super) message: Option<Message>,
    /// What the record shows of it.
    pub(super) shown: Option<Value>,
}

/// The framing of a protocol; each connection has its own value.
pub trait Framing: Default + Send + 'static {
    /// Returns the first complete message of `bytes`; `None` if it is not complete yet.
    fn next_frame(&mut self, from: Side, bytes: &[u8]) -> Option<Frame>;

    /// Called when the last command of the client was dropped: no reply to it will come.
    fn command_was_dropped(&mut self);
}
