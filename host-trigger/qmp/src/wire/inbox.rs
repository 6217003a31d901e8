//! The receiving side: QEMU's
//! [replies and events](https://www.qemu.org/docs/master/interop/qmp-spec.html). It makes lines of
//! the bytes that arrive, and keeps those that are awaited.

use std::{collections::VecDeque, io};

use serde_json::Value;

use super::event::{self, Event, Kind, MAX_EVENTS};

/// The longest line that does not reply to a command that was sent.
pub(crate) const MAX_LINE_LENGTH: usize = 64 << 10;
/// The longest reply. (The nodes and records of hundreds of volumes are below one MiB.)
const MAX_REPLY_LENGTH: usize = 16 << 20;

/// The starts of replies that may be long, as QEMU writes them, without the brace: a list, or an
/// object that consists of lists.
const LONG_STARTS: [&[u8]; 3] =
    [b"\"return\": [", b"\"return\": {\"edges\": [", b"\"return\": {\"nodes\": ["];

/// Sorts what QEMU sends: the greeting, the replies to commands, the events that are used.
///
/// A line is kept in memory up to [`MAX_LINE_LENGTH`], and beyond it only if it may be the list
/// that replies to the next command. Any other long line is dropped as it arrives.
#[derive(Debug)]
pub(crate) struct Inbox {
    greeting: Option<Vec<u8>>,
    greeted: bool,
    /// The ID of the command whose reply is next: QEMU executes commands in their order. (A client
    /// that has gone had other IDs. A command has one reply.)
    next: u32,
    /// The number of commands that are not replied to.
    awaited: u32,
    partial: Vec<u8>,
    /// The rest of a line that is too long is still to come.
    dropping: bool,
    replies: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
}

impl Inbox {
    /// An inbox for a connection whose first command has the ID `first`.
    pub(crate) fn new(first: u32) -> Self {
        Self {
            greeting: None,
            greeted: false,
            next: first,
            awaited: 0,
            partial: Vec::new(),
            dropping: false,
            replies: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Awaits the replies to `count` more commands. Returns the ID of the first of them.
    pub(crate) fn expect(&mut self, count: usize) -> u32 {
        let first = self.next.wrapping_add(self.awaited);
        self.awaited = self.awaited.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        first
    }

    /// Takes the line that came first and is no reply.
    pub(crate) fn take_greeting(&mut self) -> Option<Vec<u8>> {
        self.greeting.take()
    }

    /// The number of replies that have arrived and were not taken.
    pub(crate) fn arrived(&self) -> usize {
        self.replies.len()
    }

    /// Takes up to `count` replies, in the order of their commands.
    pub(crate) fn take_replies(&mut self, count: usize) -> VecDeque<Vec<u8>> {
        let rest = self.replies.split_off(count.min(self.replies.len()));
        std::mem::replace(&mut self.replies, rest)
    }

    /// Takes the oldest event.
    pub(crate) fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Takes bytes as they arrive.
    ///
    /// # Errors
    /// A list is too long.
    pub(crate) fn take_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        bytes.split_inclusive(|&byte| byte == b'\n').try_for_each(|piece| self.take_piece(piece))
    }

    /// Takes a piece of a line, or its end.
    fn take_piece(&mut self, piece: &[u8]) -> io::Result<()> {
        if !self.dropping {
            self.partial.extend_from_slice(piece);
            let length = self.partial.len();
            if length > MAX_REPLY_LENGTH {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if length > MAX_LINE_LENGTH && !self.may_be_awaited_list() {
                (self.partial, self.dropping) = (Vec::new(), true);
            }
        }
        if piece.ends_with(b"\n") && !std::mem::take(&mut self.dropping) {
            let line = std::mem::take(&mut self.partial);
            self.take_line(line);
        }
        Ok(())
    }

    /// Whether the line that has begun may reply to the next command by a list.
    fn may_be_awaited_list(&self) -> bool {
        let start = id_at_start(self.next);
        let rest = self.partial.strip_prefix(start.as_bytes());
        let rest = rest.or_else(|| self.partial.strip_prefix(b"{"));
        let is_long = |rest: &[u8]| LONG_STARTS.iter().any(|start| rest.starts_with(start));
        self.greeted && self.awaited > 0 && rest.is_some_and(is_long)
    }

    fn take_line(&mut self, line: Vec<u8>) {
        let kind = if line.len() <= MAX_LINE_LENGTH { event::read(&line) } else { Kind::Other };
        match kind {
            // The oldest events are those that are awaited.
            Kind::Kept(event) if self.events.len() < MAX_EVENTS => self.events.push_back(event),
            Kind::Kept(_) | Kind::Dropped => {}
            Kind::Other if self.greeted => {
                if self.awaited > 0 && has_id(&line, self.next) {
                    self.replies.push_back(line);
                    (self.next, self.awaited) = (self.next.wrapping_add(1), self.awaited - 1);
                }
            }
            // A reply to a client that has gone may come before the greeting.
            Kind::Other if is_reply(&line) => {}
            Kind::Other => (self.greeting, self.greeted) = (Some(line), true),
        }
    }
}

fn is_reply(line: &[u8]) -> bool {
    let line: Option<Value> = serde_json::from_slice(line).ok();
    line.is_some_and(|line| line.get("return").is_some() || line.get("error").is_some())
}

/// Whether the line replies to the command `id`.
fn has_id(line: &[u8], id: u32) -> bool {
    // QEMU writes the ID at the end or at the start of the line. Look there first, so that a long
    // reply is not parsed twice. An ID anywhere else belongs to a nested object.
    let text = line.trim_ascii_end();
    if text.ends_with(format!(", \"id\": {id}}}").as_bytes())
        || text.starts_with(id_at_start(id).as_bytes())
    {
        return true;
    }
    if text.len() > MAX_LINE_LENGTH {
        return false;
    }
    let line: Option<Value> = serde_json::from_slice(text).ok();
    line.is_some_and(|line| line.get("id").is_some_and(|found| *found == id))
}

/// How a reply to the command `id` starts if QEMU writes the ID first.
fn id_at_start(id: u32) -> String {
    format!("{{\"id\": {id}, ")
}

#[cfg(test)]
#[path = "inbox_tests.rs"]
mod tests;
