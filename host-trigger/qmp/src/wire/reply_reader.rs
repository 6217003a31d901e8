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

use super::{
    CommandIds,
    event::{self, Event, Kind},
};

/// The longest line that is not a list.
pub(crate) const MAX_LINE_LENGTH: usize = 64 << 10;
/// The longest reply that is a list. (The nodes and records of hundreds of volumes are below one
/// MiB.)
const MAX_LIST_LENGTH: usize = 16 << 20;

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
///
/// A line is kept in memory up to [`MAX_LINE_LENGTH`], and beyond it only if it may be the list
/// that answers the last command. Any other long line is dropped as it arrives.
#[derive(Debug)]
pub(crate) struct ReplyReader<R> {
    socket: R,
    ids: CommandIds,
    greeted: bool,
    /// The ID of the last command whose reply was passed on. A command has one reply.
    answered: u32,
    partial: Vec<u8>,
    /// The rest of a line that is too long is still to come.
    dropping: bool,
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
        Self {
            socket,
            ids,
            greeted: false,
            answered: 0,
            partial: Vec::new(),
            dropping: false,
            ready: VecDeque::new(),
            events,
            list_reply,
        }
    }

    /// Takes a piece of a line, or its end.
    ///
    /// # Errors
    /// The line is a list that is too long.
    fn take_piece(&mut self, piece: &[u8]) -> io::Result<()> {
        if !self.dropping {
            self.partial.extend_from_slice(piece);
            let length = self.partial.len();
            if length > MAX_LIST_LENGTH {
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

    /// Whether the line that has begun may answer the last command by a list.
    fn may_be_awaited_list(&self) -> bool {
        let id = self.ids.last();
        let rest = match self.partial.strip_prefix(id_at_start(id).as_bytes()) {
            Some(rest) => rest,
            None => self.partial.get(1..).unwrap_or_default(),
        };
        self.greeted
            && self.answered != id
            && self.partial.starts_with(b"{")
            && rest.starts_with(&LIST_START[1..])
    }

    fn take_line(&mut self, line: Vec<u8>) {
        let kind = if line.len() <= MAX_LINE_LENGTH { event::read(&line) } else { Kind::Other };
        if let Kind::Kept(event) = kind {
            // If the channel is full, no one is waiting for events: drop this one.
            drop(self.events.try_send(event));
        } else if kind == Kind::Dropped {
            // Nobody uses it.
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
        } else if !is_reply(&line) {
            // The greeting. If it is anything else, qapi ends the connection.
            self.greeted = true;
            self.ready.extend(line);
        }
    }
}

fn is_reply(line: &[u8]) -> bool {
    let line: Option<Value> = serde_json::from_slice(line).ok();
    line.is_some_and(|line| line.get("return").is_some() || line.get("error").is_some())
}

/// Returns the reply to the command `id` without the ID, or `None` if the line replies to another
/// command.
fn without_id(mut line: Vec<u8>, id: u32) -> Option<Vec<u8>> {
    // QEMU writes the ID at the end or at the start of the line. Look there first, so that a long
    // reply is neither parsed twice nor copied. An ID anywhere else belongs to a nested object.
    let text = line.trim_ascii_end();
    if let Some(reply) = text.strip_suffix(format!(", \"id\": {id}}}").as_bytes()) {
        // The brace stays.
        let id = reply.len()..text.len() - 1;
        line.drain(id);
        return Some(line);
    }
    let start = id_at_start(id);
    if line.starts_with(start.as_bytes()) {
        line.drain(1..start.len());
        return Some(line);
    }
    if line.len() > MAX_LINE_LENGTH {
        return None;
    }
    let mut line: Value = serde_json::from_slice(&line).ok()?;
    let found = line.as_object_mut()?.remove("id")?;
    (found == id).then(|| format!("{line}\n").into_bytes())
}

/// How a reply to the command `id` starts if QEMU writes the ID first.
fn id_at_start(id: u32) -> String {
    format!("{{\"id\": {id}, ")
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
                self.take_piece(piece)?;
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
    use tokio::io::AsyncReadExt as _;

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
        assert_eq!(without_id(line.as_bytes().to_vec(), 71), passed);
    }

    /// Reads `lines` after a greeting, while the reply to the command 71 is awaited.
    async fn read(lines: &[u8]) -> (io::Result<Vec<u8>>, Vec<Event>, ListReply) {
        let (sender, mut receiver) = mpsc::channel(event::MAX_EVENTS);
        let list_reply = ListReply::default();
        let ids = CommandIds::starting_after(71);
        let input = [b"{\"QMP\": {}}\n", lines].concat();
        let mut reader = ReplyReader::new(&*input, ids, sender, list_reply.clone());
        let mut passed = Vec::new();
        let read = reader.read_to_end(&mut passed).await;
        assert!(reader.partial.capacity() <= 2 * MAX_LIST_LENGTH);
        let events = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
        (read.map(|_| passed.split_off(12)), events, list_reply)
    }

    fn padded(start: &str, end: &str) -> Vec<u8> {
        format!("{start}{}{end}\n", " ".repeat(MAX_LINE_LENGTH)).into_bytes()
    }

    #[tokio::test]
    async fn a_long_line_is_dropped_and_what_follows_it_is_read() {
        let mut lines = padded("{\"event\": \"DEVICE_DELETED\"", "}");
        lines.extend(padded("", "no JSON"));
        lines.extend(b"{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"d\"}}\n");
        lines.extend(b"{\"return\": {}, \"id\": 71}\n");
        let (passed, events, _) = read(&lines).await;
        assert_eq!(passed.unwrap(), b"{\"return\": {}}\n");
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].data["device"], "d");
    }

    #[rstest]
    #[case::id_at_the_end("{\"return\": [", "], \"id\": 71}")]
    #[case::id_at_the_start("{\"id\": 71, \"return\": [", "]}")]
    #[tokio::test]
    async fn a_list_that_is_awaited_may_be_long(#[case] start: &str, #[case] end: &str) {
        let (passed, _, list) = read(&padded(start, end)).await;
        assert_eq!(passed.unwrap(), EMPTY_LIST);
        assert_eq!(list.take().unwrap(), padded("{\"return\": [", "]}"));
    }

    #[rstest]
    #[case::no_list("{\"return\": {", "}, \"id\": 71}")]
    #[case::another_command("{\"return\": [", "], \"id\": 72}")]
    #[case::another_command("{\"id\": 72, \"return\": [", "]}")]
    #[case::second_reply("{\"return\": {}, \"id\": 71}\n{\"return\": [", "], \"id\": 71}")]
    #[tokio::test]
    async fn another_long_reply_is_dropped(#[case] start: &str, #[case] end: &str) {
        let mut lines = padded(start, end);
        lines.extend(b"{\"return\": {}, \"id\": 71}\n");
        assert_eq!(read(&lines).await.0.unwrap(), b"{\"return\": {}}\n");
    }

    #[tokio::test]
    async fn a_list_has_a_length_beyond_which_the_connection_ends() {
        let list = [&b"{\"return\": ["[..], &vec![b' '; MAX_LIST_LENGTH]].concat();
        assert!(read(&list).await.0.is_err());
    }
}
