//! The record of all messages that passed a proxy, as [JSON lines](https://jsonlines.org).

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde_json::{Value, json};

use super::{fault::Fault, framing::Side};
use crate::Error;

/// All messages so far.
#[derive(Debug)]
pub(super) struct Traffic {
    start: Instant,
    lines: Mutex<Vec<Value>>,
    /// The file that gets the messages as they come.
    file: Option<File>,
}

impl Traffic {
    /// Returns an empty record, which is also written to `file`.
    pub(super) fn new(file: Option<&Path>) -> Result<Self, Error> {
        let file =
            file.map(|path| File::create(path).map_err(Error::file("create", path))).transpose()?;
        Ok(Self { start: Instant::now(), lines: Mutex::default(), file })
    }

    /// Records a message, and the fault that is applied to it.
    pub(super) fn add(&self, connection: usize, from: Side, line: Value, fault: Option<&Fault>) {
        let at = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut entry = json!({
            "at_us": at, "connection": connection, "from": from.to_string(), "line": line,
        });
        if let Some(fault) = fault {
            entry["fault"] = Value::from(fault.to_string());
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut file) = self.file.as_ref() {
            // A full disk must not change what the peers send to each other.
            let _ = writeln!(file, "{entry}");
        }
        lines.push(entry);
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    pub(super) fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
