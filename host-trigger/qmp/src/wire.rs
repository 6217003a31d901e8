//! QMP's lines below qapi: numbers for its commands, and answers as it can take them.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};

use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::unix::OwnedWriteHalf,
    sync::mpsc,
};

/// Events beyond this many that nobody has taken are dropped.
pub(crate) const EVENTS: usize = 1024;

/// An asynchronous message of QEMU.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// For instance `DEVICE_DELETED`.
    pub name: String,
    /// Its data; null if there is none.
    pub data: Value,
}

/// A reply is at most this long (the nodes and records of hundreds of volumes are below one MiB).
const LONGEST_LINE: usize = 64 << 20;

/// The number of the command that was sent last. Shared by the two directions of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    last: Arc<AtomicU32>,
}

impl Numbers {
    pub(crate) fn new() -> Self {
        // Random, so that it is not that of a client that has gone; short, because QEMU reads byte
        // by byte.
        Self::at(fastrand::u32(10_000..100_000))
    }

    pub(crate) fn at(last: u32) -> Self {
        Self { last: Arc::new(AtomicU32::new(last)) }
    }

    fn current(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }
}

/// Writes qapi's commands with an id each.
#[derive(Debug)]
pub(crate) struct Numbered {
    socket: OwnedWriteHalf,
    numbers: Numbers,
    line_starts: bool,
    pending: VecDeque<u8>,
}

impl Numbered {
    pub(crate) fn new(socket: OwnedWriteHalf, numbers: Numbers) -> Self {
        Self { socket, numbers, line_starts: true, pending: VecDeque::new() }
    }
}

impl AsyncWrite for Numbered {
    /// Only takes the bytes; qapi flushes after each command.
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        for &byte in bytes {
            self.pending.push_back(byte);
            if self.line_starts && byte == b'{' {
                self.numbers.last.fetch_add(1, Ordering::Relaxed);
                let id = format!("\"id\":{},", self.numbers.current());
                self.pending.extend(id.as_bytes());
            }
            self.line_starts = byte == b'\n';
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.pending.is_empty() {
            let written =
                ready!(Pin::new(&mut this.socket).poll_write(cx, this.pending.make_contiguous()))?;
            this.pending.drain(..written);
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// An answer that is a list, as QEMU wrote it. qapi would read it four times before it has the form
/// that is wanted, and lists of all that QEMU has grow by kilobytes with each volume: qapi is given
/// an empty one instead.
#[derive(Debug, Clone, Default)]
pub(crate) struct List(Arc<Mutex<Option<Vec<u8>>>>);

impl List {
    fn put(&self, answer: Vec<u8>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }

    /// The last answer, if it was a list.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// This is how QEMU begins one.
const LIST: &[u8] = b"{\"return\": [";
const EMPTY_LIST: &[u8] = b"{\"return\": []}\n";

/// QEMU's lines as qapi can take them: without events, which go to a channel, without answers to
/// anybody else, without ids, and with long lists cut out.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    socket: R,
    numbers: Numbers,
    greeted: bool,
    /// The command whose answer was passed on last: there is one answer to each.
    answered: u32,
    partial: Vec<u8>,
    ready: VecDeque<u8>,
    events: mpsc::Sender<Event>,
    list: List,
}

impl<R> Lines<R> {
    pub(crate) fn new(
        socket: R,
        numbers: Numbers,
        events: mpsc::Sender<Event>,
        list: List,
    ) -> Self {
        let (partial, ready) = (Vec::new(), VecDeque::new());
        Self { socket, numbers, greeted: false, answered: 0, partial, ready, events, list }
    }

    fn take_line(&mut self, line: &[u8]) {
        if let Some(event) = event(line) {
            // Nobody waits for events for as long as the channel is full of older ones.
            drop(self.events.try_send(event));
        } else if self.greeted {
            let asked = self.numbers.current();
            let Some(answer) = without_id(line, asked).filter(|_| self.answered != asked) else {
                return;
            };
            self.answered = asked;
            if answer.starts_with(LIST) {
                self.list.put(answer);
                self.ready.extend(EMPTY_LIST);
            } else {
                self.ready.extend(answer);
            }
        } else if !is_answer(line) {
            // The greeting; anything else makes qapi end the connection.
            self.greeted = true;
            self.ready.extend(line);
        }
    }
}

fn event(line: &[u8]) -> Option<Event> {
    // Replies can be long; only what may be an event is parsed here.
    position(line, b"\"event\"")?;
    let mut line: Value = serde_json::from_slice(line).ok()?;
    let name = line.get("event")?.as_str()?.to_owned();
    Some(Event { name, data: line["data"].take() })
}

fn is_answer(line: &[u8]) -> bool {
    let line: Option<Value> = serde_json::from_slice(line).ok();
    line.is_some_and(|line| line.get("return").is_some() || line.get("error").is_some())
}

/// The answer to the command `id`, without the id. `None` if it answers another one.
fn without_id(line: &[u8], id: u32) -> Option<Vec<u8>> {
    // This is how QEMU writes it, so that long answers need not be parsed twice. Anywhere else it
    // is not the answer's own.
    let text = line.trim_ascii_end();
    if let Some(answer) = text.strip_suffix(format!(", \"id\": {id}}}").as_bytes()) {
        return Some([answer, b"}", &line[text.len()..]].concat());
    }
    if let Some(answer) = line.strip_prefix(format!("{{\"id\": {id}, ").as_bytes()) {
        return Some([b"{", answer].concat());
    }
    let mut line: Value = serde_json::from_slice(line).ok()?;
    let answers = line.as_object_mut()?.remove("id")?;
    (answers == id).then(|| format!("{line}\n").into_bytes())
}

fn position(line: &[u8], word: &[u8]) -> Option<usize> {
    line.windows(word.len()).rposition(|bytes| bytes == word)
}

impl<R: AsyncRead + Unpin> AsyncRead for Lines<R> {
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
                } else if self.partial.len() > LONGEST_LINE {
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
    #[case::of_an_object_inside("{\"return\": {\"pid\": 1, \"id\": 71}, \"id\": 72}\r\n", None)]
    #[case::of_an_object_inside_alone("{\"return\": [{\"pid\": 1, \"id\": 71}]}\r\n", None)]
    #[case::both(
        "{\"return\": {\"pid\": 1, \"id\": 71}, \"id\": 71}\r\n",
        Some("{\"return\": {\"pid\": 1, \"id\": 71}}\r\n")
    )]
    fn only_the_answer_to_the_last_command_passes(
        #[case] line: &str,
        #[case] passed: Option<&str>,
    ) {
        let passed = passed.map(|line| line.as_bytes().to_vec());
        assert_eq!(without_id(line.as_bytes(), 71), passed);
    }
}
