//! The receiving side: QEMU's
//! [replies and events](https://www.qemu.org/docs/master/interop/qmp-spec.html), filtered so that
//! qapi can read them.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::mpsc,
};

use super::CommandIds;

/// The number of events that wait for their receiver; later ones are dropped.
pub(crate) const MAX_EVENTS: usize = 1024;

/// The longest reply. (The nodes and records of hundreds of volumes are below one MiB.)
const MAX_LINE_LENGTH: usize = 64 << 20;

/// An asynchronous message of QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The event's name, for instance `DEVICE_DELETED`.
    pub name: String,
    /// The event's data; null if there is none.
    pub data: Value,
}

/// The last reply that is a list, as QEMU wrote it. qapi would parse it four times before it has
/// the requested type, and lists of everything in QEMU grow by kilobytes with each volume.
/// Therefore qapi gets an empty list instead.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListReply(Arc<Mutex<Option<Vec<u8>>>>);

impl ListReply {
    fn put(&self, reply: Vec<u8>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
    }

    /// Takes the last reply, if it was a list.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The start of a reply that is a list, as QEMU writes it.
const LIST_START: &[u8] = b"{\"return\": [";
const EMPTY_LIST: &[u8] = b"{\"return\": []}\n";

/// Reads QEMU's lines and passes on what qapi can take: without events, which go to a channel,
/// without replies to other clients, without IDs, and with lists replaced by empty ones.
#[derive(Debug)]
pub(crate) struct ReplyReader<R> {
    socket: R,
    ids: CommandIds,
    greeted: bool,
    /// The ID of the last command whose reply was passed on. A command has one reply.
    answered: u32,
    partial: Vec<u8>,
    ready: VecDeque<u8>,
    events: mpsc::Sender<Event>,
    list_reply: ListReply,
}

impl<R> ReplyReader<R> {
    pub(crate) fn new(
        socket: R,
        ids: CommandIds,
        events: mpsc::Sender<Event>,
        list_reply: ListReply,
    ) -> Self {
        let (partial, ready) = (Vec::new(), VecDeque::new());
        Self { socket, ids, greeted: false, answered: 0, partial, ready, events, list_reply }
    }

    fn take_line(&mut self, line: &[u8]) {
        if let Some(event) = event(line) {
            // If the channel is full, no one is waiting for events: drop this one.
            drop(self.events.try_send(event));
        } else if self.greeted {
            let id = self.ids.last();
            let Some(reply) = without_id(line, id).filter(|_| self.answered != id) else {
                return;
            };
            self.answered = id;
            if reply.starts_with(LIST_START) {
                self.list_reply.put(reply);
                self.ready.extend(EMPTY_LIST);
            } else {
                self.ready.extend(reply);
            }
        } else if !is_reply(line) {
            // The greeting. If it is anything else, qapi ends the connection.
            self.greeted = true;
            self.ready.extend(line);
        }
    }
}

fn event(line: &[u8]) -> Option<Event> {
    // Replies can be long: parse only lines that may be an event.
    position(line, b"\"event\"")?;
    let mut line: Value = serde_json::from_slice(line).ok()?;
    let name = line.get("event")?.as_str()?.to_owned();
    Some(Event { name, data: line["data"].take() })
}

fn is_reply(line: &[u8]) -> bool {
    let line: Option<Value> = serde_json::from_slice(line).ok();
    line.is_some_and(|line| line.get("return").is_some() || line.get("error").is_some())
}

/// Returns the reply to the command `id` without the ID, or `None` if the line replies to another
/// command.
fn without_id(line: &[u8], id: u32) -> Option<Vec<u8>> {
    // QEMU writes the ID at the end or at the start of the line. Look there first, so that a long
    // reply is not parsed twice. An ID anywhere else belongs to a nested object.
    let text = line.trim_ascii_end();
    if let Some(reply) = text.strip_suffix(format!(", \"id\": {id}}}").as_bytes()) {
        return Some([reply, b"}", &line[text.len()..]].concat());
    }
    if let Some(reply) = line.strip_prefix(format!("{{\"id\": {id}, ").as_bytes()) {
        return Some([b"{", reply].concat());
    }
    let mut line: Value = serde_json::from_slice(line).ok()?;
    let found = line.as_object_mut()?.remove("id")?;
    (found == id).then(|| format!("{line}\n").into_bytes())
}

fn position(line: &[u8], word: &[u8]) -> Option<usize> {
    line.windows(word.len()).rposition(|bytes| bytes == word)
}

impl<R: AsyncRead + Unpin> AsyncRead for ReplyReader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ready.is_empty() {
            let mut chunk = [0; 8192];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            for piece in chunk.filled().split_inclusive(|&byte| byte == b'\n') {
                self.partial.extend_from_slice(piece);
                if piece.ends_with(b"\n") {
                    let line = std::mem::take(&mut self.partial);
                    self.take_line(&line);
                } else if self.partial.len() > MAX_LINE_LENGTH {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
            }
        }
        let (bytes, _) = self.ready.as_slices();
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        self.ready.drain(..count);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("{\"return\": {}, \"id\": 71}\r\n", Some("{\"return\": {}}\r\n"))]
    #[case("{\"id\": 71, \"error\": {}}\r\n", Some("{\"error\": {}}\r\n"))]
    #[case("{\"id\":71,\"return\":1}\n", Some("{\"return\":1}\n"))]
    #[case("{\"return\": {}, \"id\": 72}\r\n", None)]
    #[case("{\"return\": {}, \"id\": 711}\r\n", None)]
    #[case("{\"return\": {}}\r\n", None)]
    #[case::id_in_a_nested_object("{\"return\": {\"pid\": 1, \"id\": 71}, \"id\": 72}\r\n", None)]
    #[case::id_only_in_a_nested_object("{\"return\": [{\"pid\": 1, \"id\": 71}]}\r\n", None)]
    #[case::id_in_both(
        "{\"return\": {\"pid\": 1, \"id\": 71}, \"id\": 71}\r\n",
        Some("{\"return\": {\"pid\": 1, \"id\": 71}}\r\n")
    )]
    fn only_the_reply_to_the_last_command_is_passed_on(
        #[case] line: &str,
        #[case] passed: Option<&str>,
    ) {
        let passed = passed.map(|line| line.as_bytes().to_vec());
        assert_eq!(without_id(line.as_bytes(), 71), passed);
    }
}
