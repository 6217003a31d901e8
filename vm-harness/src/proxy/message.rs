//! The kinds of messages that a rule can name. They are the same for both protocols: a command is a
//! QMP command or a method of the agent.

use std::fmt;

/// A message that passes a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// QEMU's first line.
    Greeting,
    /// A command, by its name: `device_add`, `Attach`, `CONNECT`.
    Command(String),
    /// The reply to the command of this name; it may be an error.
    Reply(String),
    /// An event of QEMU, by its name.
    Event(String),
}

/// Names QEMU's greeting.
pub fn greeting() -> Message {
    Message::Greeting
}

/// Names a command of QMP, or a method of the agent's services; `CONNECT` is the first line to a
/// hybrid vsock.
pub fn command(name: &str) -> Message {
    Message::Command(name.to_owned())
}

/// Names the reply to a command.
pub fn reply_to(name: &str) -> Message {
    Message::Reply(name.to_owned())
}

/// Names an event of QEMU.
pub fn event(name: &str) -> Message {
    Message::Event(name.to_owned())
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Greeting => f.write_str("greeting"),
            Self::Command(name) => write!(f, "command:{name}"),
            Self::Reply(name) => write!(f, "reply:{name}"),
            Self::Event(name) => write!(f, "event:{name}"),
        }
    }
}
