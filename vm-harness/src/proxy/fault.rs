//! What can befall a message on its way.

use std::{fmt, sync::Arc, time::Duration};

use serde_json::Value;

use super::{Message, rule::shown};

/// Changes a message's bytes.
type Edit = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// What befalls a message.
#[derive(Clone)]
pub enum Fault {
    /// It comes so much later; what follows it may overtake it.
    Delay(Duration),
    /// It never comes; the connection goes on.
    Drop,
    /// It comes twice.
    Twice,
    /// It never comes, and the connection ends on both sides. A command that is cut was not
    /// executed; one whose reply is cut was.
    Cut,
    /// So many of its bytes come, then the connection ends on both sides.
    CutAfter(usize),
    /// It comes in pieces of so many bytes, each after a moment.
    Split(usize),
    /// It comes right behind that other message.
    Behind(Message),
    /// The client hears these bytes first.
    Inject(Vec<u8>),
    /// It comes with other bytes.
    Edit(Edit),
}

impl Fault {
    /// The client hears the event `name` of QEMU first.
    pub fn inject_event(name: &str, data: &Value) -> Self {
        let timestamp = serde_json::json!({ "seconds": 1, "microseconds": 2 });
        let event = serde_json::json!({ "timestamp": timestamp, "event": name, "data": data });
        Self::Inject(format!("{event}\r\n").into_bytes())
    }

    /// It comes with other bytes.
    pub fn edit(change: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::Edit(Arc::new(change))
    }

    /// A line of QMP comes as another document.
    pub fn edit_json(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self::edit(move |line| {
            let Ok(mut value) = serde_json::from_slice(line) else { return line.to_vec() };
            change(&mut value);
            format!("{value}\r\n").into_bytes()
        })
    }
}

/// As a rule's text has it.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(time) => write!(f, "delay:{}", shown(*time)),
            Self::Drop => f.write_str("drop"),
            Self::Twice => f.write_str("twice"),
            Self::Cut => f.write_str("cut"),
            Self::CutAfter(bytes) => write!(f, "cut:{bytes}"),
            Self::Split(bytes) => write!(f, "split:{bytes}"),
            Self::Behind(message) => write!(f, "behind:{message}"),
            Self::Inject(bytes) => {
                write!(f, "inject:{}", String::from_utf8_lossy(bytes).trim_end())
            }
            // A closure has no text; this form is for messages alone.
            Self::Edit(_) => f.write_str("edit"),
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
