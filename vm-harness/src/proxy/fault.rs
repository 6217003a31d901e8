//! The faults that a proxy applies to a message.

use std::{fmt, sync::Arc, time::Duration};

use serde_json::Value;

use super::message::Message;

/// Changes a message's bytes.
type Edit = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// What a proxy does to a message.
#[derive(Clone)]
pub enum Fault {
    /// Delivers it after this time; later messages may overtake it.
    Delay(Duration),
    /// Delivers it after this time, and what follows it from the same side behind it.
    Stall(Duration),
    /// Does not deliver it; the connection stays open.
    Drop,
    /// Delivers it twice.
    Twice,
    /// Does not deliver it, and closes the connection on both sides. A command that is cut is not
    /// executed; a command whose reply is cut was executed.
    Cut,
    /// Delivers this many of its bytes, and closes the connection on both sides.
    CutAfter(usize),
    /// Delivers it in pieces of this many bytes, with a pause between them.
    Split(usize),
    /// Delivers it directly after the other message.
    Behind(Message),
    /// Sends these bytes to the client first.
    Inject(Vec<u8>),
    /// Delivers it with other bytes.
    Edit(Edit),
}

impl Fault {
    /// Sends QEMU's event `name` to the client first.
    pub fn inject_event(name: &str, data: &Value) -> Self {
        let timestamp = serde_json::json!({ "seconds": 1, "microseconds": 2 });
        let event = serde_json::json!({ "timestamp": timestamp, "event": name, "data": data });
        Self::Inject(format!("{event}\r\n").into_bytes())
    }

    /// Delivers the message with other bytes.
    pub fn edit(change: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::Edit(Arc::new(change))
    }

    /// Delivers a line of QMP with changes in its JSON document.
    pub fn edit_json(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::edit(move |line| {
            let Ok(mut value) = serde_json::from_slice(line) else { return line.to_vec() };
            change(&mut value);
            format!("{value}\r\n").into_bytes()
        })
    }
}

/// As in the text of a rule.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // In whole milliseconds, as `parse_duration` reads it.
            Self::Delay(time) => write!(f, "delay:{}ms", time.as_millis()),
            Self::Stall(time) => write!(f, "stall:{}ms", time.as_millis()),
            Self::Drop => f.write_str("drop"),
            Self::Twice => f.write_str("twice"),
            Self::Cut => f.write_str("cut"),
            Self::CutAfter(bytes) => write!(f, "cut:{bytes}"),
            Self::Split(bytes) => write!(f, "split:{bytes}"),
            Self::Behind(message) => write!(f, "behind:{message}"),
            Self::Inject(bytes) => {
                write!(f, "inject:{}", String::from_utf8_lossy(bytes).trim_end())
            }
            // A closure has no text form; this one is for output only.
            Self::Edit(_) => f.write_str("edit"),
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
