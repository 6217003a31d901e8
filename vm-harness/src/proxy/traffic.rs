//! The record of everything that went through a proxy, as [JSON lines](https://jsonlines.org).

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde_json::{Value, json};

use super::{Fault, Side};
use crate::Error;

/// All messages so far.
#[derive(Debug)]
pub(super) struct Traffic {
    start: Instant,
    lines: Mutex<Vec<Value>>,
    /// Where the same goes for people to follow.
    file: Option<File>,
}

impl Traffic {
    /// An empty one, written to `file` as well.
    pub(super) fn new(file: Option<&Path>) -> Result<Self, Error> {
        let file =
            file.map(|path| File::create(path).map_err(Error::file("create", path))).transpose()?;
        Ok(Self { start: Instant::now(), lines: Mutex::default(), file })
    }

    /// Notes a message, and what befalls it.
    pub(super) fn add(&self, connection: usize, from: Side, line: Value, fault: Option<&Fault>) {
        let at = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut entry = json!({ "at_us": at, "connection": connection, "from": from.to_string(), "line": line });
        if let Some(fault) = fault {
            entry["fault"] = Value::from(fault.to_string());
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut file) = self.file.as_ref() {
            // A full disk must not change what the peers see of each other.
            let _ = writeln!(file, "{entry}");
        }
        lines.push(entry);
    }

    pub(super) fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
