//! A client of QEMU's monitor, [QMP](https://www.qemu.org/docs/master/interop/qmp-spec.html), over `qapi`, and what it takes
//! to live with both:
//!
//! - A socket serves one client: the next one connects and then never gets a greeting. The greeting has a deadline, and
//!   [`QmpError::Held`] is only said when another connected client was seen.
//! - qapi 0.15 ends the connection at an event that it does not know. `Lines` takes every event out before qapi sees it.
//! - A command that was cut short, by its deadline or because its future was dropped, makes the next one panic in qapi ("QAPI
//!   duplicate command id"). It therefore ends the use of this connection: every later command fails with
//!   [`QmpError::Disconnected`], and the caller connects again and reads the state anew.
//! - QEMU may give the reply to a client that has gone to the next one, ahead of its greeting (seen with 10.0 after a killed
//!   client), and qapi 0.15 uses no ids. `Numbered` and `Lines` add and check them below qapi.
//! - A descriptor travels on a lone newline ahead of its command: qapi has no way to send one.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, Shutdown, getsockopt, sendmsg, shutdown, sockopt};
use qapi::{
    ExecuteError,
    futures::{QapiService, QmpStreamTokio},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
};

mod commands;
mod error;

pub use error::QmpError;

use crate::{Deadline, socket_peers, unix_socket};

type Service = QapiService<QmpStreamTokio<Numbered>>;

/// The longest that any command may take.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the greeting may take.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// Events beyond this many that nobody took are dropped.
const EVENTS: usize = 1024;
/// A reply is at most this long (the nodes and records of hundreds of volumes are below one MiB).
const LONGEST_LINE: usize = 64 << 20;

/// Something that QEMU told unasked.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// For instance `DEVICE_DELETED`.
    pub name: String,
    /// Its data; null without.
    pub data: Value,
}

/// A descriptor that QEMU keeps: `/dev/fdset/<set>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassedFd {
    /// The set's number.
    pub set: u64,
    /// The descriptor's number in QEMU.
    pub fd: i64,
}

/// A connection to QEMU, ready for commands.
pub struct Qmp {
    service: Service,
    events: mpsc::Receiver<Event>,
    socket: OwnedFd,
    deadline: Deadline,
    version: String,
    /// A command was sent and its reply has not been read.
    unanswered: bool,
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qmp")
            .field("version", &self.version)
            .field("unanswered", &self.unanswered)
            .finish_non_exhaustive()
    }
}

impl Qmp {
    /// Connects to the socket at `path`, awaits the greeting and leaves the negotiation mode. All of it, and every later
    /// command, ends at `deadline`; the greeting has [`GREETING_TIMEOUT`] at most.
    ///
    /// # Errors
    /// Nobody listens, another client holds the socket, QEMU is stopped, or it is not QEMU.
    pub async fn connect(path: impl AsRef<Path>, deadline: Deadline) -> Result<Self, QmpError> {
        Self::connect_within(path, deadline, GREETING_TIMEOUT).await
    }

    /// The same with another limit for the greeting, for a QEMU that is at work on an earlier command.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_within(
        path: impl AsRef<Path>,
        deadline: Deadline,
        patience: Duration,
    ) -> Result<Self, QmpError> {
        let path = path.as_ref();
        let stream = match unix_socket::connect(path).await {
            Ok(stream) => stream,
            // The listener's queue is full: others wait for a greeting as well.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(no_greeting(path, None)),
            Err(source) => return Err(QmpError::Connect { path: path.to_owned(), source }),
        };
        let socket = stream
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| QmpError::Connect { path: path.to_owned(), source })?;
        let (events, taken) = mpsc::channel(EVENTS);
        let (read, write) = stream.into_split();
        let numbers = Numbers::new();
        let greeting = async {
            let (lines, write) = (Lines::new(read, numbers.clone(), events), Numbered::new(write, numbers));
            let greeted = QmpStreamTokio::open_split(lines, write).await?;
            let version = greeted.capabilities.QMP.version.qemu.clone();
            Ok::<_, io::Error>((greeted.negotiate().await?, version))
        };
        let (stream, version) = match deadline.within(patience).wait(greeting).await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(_)) => return Err(QmpError::NotQmp { path: path.to_owned() }),
            Err(_) => return Err(no_greeting(path, Some(socket.as_fd()))),
        };
        let (service, replies) = stream.into_parts();
        tokio::spawn(replies.into_future());
        let version = format!("{}.{}.{}", version.major, version.minor, version.micro);
        Ok(Self { service, events: taken, socket, deadline, version, unanswered: false })
    }

    /// QEMU's version, `10.0.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Later commands end at `deadline`.
    pub fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Is the connection of use for another command?
    pub fn is_usable(&self) -> bool {
        !self.unanswered
    }

    /// Ends the connection. QEMU serves one client at a time: until then it greets nobody else, us included.
    pub fn close(&mut self) {
        self.unanswered = true;
        // It fails where the connection has ended already.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Runs `command`; events that arrive meanwhile are kept for [`next_event`](Self::next_event).
    ///
    /// # Errors
    /// QEMU refuses it, does not answer within [`COMMAND_TIMEOUT`], or is gone.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        if std::mem::replace(&mut self.unanswered, true) {
            return Err(QmpError::Disconnected { command: command.to_owned() });
        }
        let limit = self.deadline.within(COMMAND_TIMEOUT);
        let answer = match limit.wait(commands::send(&self.service, command, arguments)).await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                self.unanswered = false;
                return Err(QmpError::Unlisted { command: command.to_owned() });
            }
            Err(_) => return Err(QmpError::TimedOut { command: command.to_owned() }),
        };
        match answer {
            Ok(value) => {
                self.unanswered = false;
                Ok(value)
            }
            Err(ExecuteError::Qapi(error)) => {
                self.unanswered = false;
                let class = format!("{:?}", error.class);
                Err(QmpError::Refused { command: command.to_owned(), class, description: error.desc })
            }
            Err(ExecuteError::Io(_)) => Err(QmpError::Disconnected { command: command.to_owned() }),
        }
    }

    /// Runs `command` and reads its answer as `T`.
    ///
    /// # Errors
    /// As [`execute`](Self::execute), or the answer has another form.
    pub async fn query<T: serde::de::DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let answer = self.execute(command, arguments).await?;
        serde_json::from_value(answer).map_err(|_| QmpError::Answer { command: command.to_owned() })
    }

    /// Hands `fd` to QEMU, in the set `set` or a new one, with the free text `opaque`.
    ///
    /// # Errors
    /// As [`execute`](Self::execute).
    pub async fn add_fd(
        &mut self,
        fd: impl AsFd,
        set: Option<u64>,
        opaque: &str,
    ) -> Result<PassedFd, QmpError> {
        let command = "add-fd".to_owned();
        if self.unanswered {
            return Err(QmpError::Disconnected { command });
        }
        let fds = [fd.as_fd().as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        // The socket's buffer is empty, as no command is under way: one byte does not block.
        let sent = sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(b"\n")],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        if sent.is_err() {
            self.unanswered = true;
            return Err(QmpError::Disconnected { command });
        }
        let arguments = match set {
            Some(set) => json!({"fdset-id": set, "opaque": opaque}),
            None => json!({"opaque": opaque}),
        };
        let answer = self.execute("add-fd", arguments).await?;
        match (answer["fdset-id"].as_u64(), answer["fd"].as_i64()) {
            (Some(set), Some(fd)) => Ok(PassedFd { set, fd }),
            _ => Err(QmpError::Answer { command }),
        }
    }

    /// The next event that nobody has taken yet; `None` at `deadline` or when QEMU is gone.
    pub async fn next_event(&mut self, deadline: Deadline) -> Option<Event> {
        deadline.wait(self.events.recv()).await.ok().flatten()
    }
}

fn no_greeting(path: &Path, socket: Option<BorrowedFd<'_>>) -> QmpError {
    let server =
        socket.and_then(|socket| getsockopt(&socket, sockopt::PeerCredentials).ok()).map(|peer| peer.pid());
    if socket_peers::another_client(path, server) {
        QmpError::Held { path: path.to_owned() }
    } else {
        QmpError::Silent { path: path.to_owned() }
    }
}

/// The number of the command that was sent last. Shared by the two directions of a connection.
#[derive(Debug, Clone)]
struct Numbers {
    last: Arc<AtomicU32>,
}

impl Numbers {
    fn new() -> Self {
        // Random, so that it is not that of a client that has gone; short, because QEMU reads byte by byte.
        Self { last: Arc::new(AtomicU32::new(fastrand::u32(10_000..100_000))) }
    }

    fn current(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }
}

/// Writes qapi's commands with an id each.
#[derive(Debug)]
struct Numbered {
    socket: OwnedWriteHalf,
    numbers: Numbers,
    line_starts: bool,
    pending: VecDeque<u8>,
}

impl Numbered {
    fn new(socket: OwnedWriteHalf, numbers: Numbers) -> Self {
        Self { socket, numbers, line_starts: true, pending: VecDeque::new() }
    }
}

impl AsyncWrite for Numbered {
    /// Only takes the bytes; qapi flushes after each command.
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
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
            let written = ready!(Pin::new(&mut this.socket).poll_write(cx, this.pending.make_contiguous()))?;
            this.pending.drain(..written);
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// QEMU's lines as qapi can take them: without events, which go to a channel, without answers to anybody else, and without ids.
#[derive(Debug)]
struct Lines {
    socket: OwnedReadHalf,
    numbers: Numbers,
    greeted: bool,
    partial: Vec<u8>,
    ready: VecDeque<u8>,
    events: mpsc::Sender<Event>,
}

impl Lines {
    fn new(socket: OwnedReadHalf, numbers: Numbers, events: mpsc::Sender<Event>) -> Self {
        Self { socket, numbers, greeted: false, partial: Vec::new(), ready: VecDeque::new(), events }
    }

    fn take_line(&mut self, line: &[u8]) {
        if let Some(event) = event(line) {
            // Nobody waits for events for as long as the channel is full of older ones.
            drop(self.events.try_send(event));
        } else if self.greeted {
            self.ready.extend(without_id(line, self.numbers.current()).unwrap_or_default());
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
    // This is how QEMU writes it, so that long answers need not be parsed twice.
    for form in [format!(", \"id\": {id}}}"), format!("{{\"id\": {id}, ")] {
        if let Some(at) = position(line, form.as_bytes()) {
            let brace = if form.starts_with('{') { "{" } else { "}" };
            return Some([&line[..at], brace.as_bytes(), &line[at + form.len()..]].concat());
        }
    }
    let mut line: Value = serde_json::from_slice(line).ok()?;
    let answers = line.as_object_mut()?.remove("id")?;
    (answers == id).then(|| format!("{line}\n").into_bytes())
}

fn position(line: &[u8], word: &[u8]) -> Option<usize> {
    line.windows(word.len()).rposition(|bytes| bytes == word)
}

impl AsyncRead for Lines {
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
    fn only_the_answer_to_the_last_command_passes(#[case] line: &str, #[case] passed: Option<&str>) {
        let passed = passed.map(|line| line.as_bytes().to_vec());
        assert_eq!(without_id(line.as_bytes(), 71), passed);
    }
}
