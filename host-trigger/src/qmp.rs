//! A client of QEMU's monitor, [QMP](https://www.qemu.org/docs/master/interop/qmp-spec.html), over `qapi`, and what it takes
//! to live with both:
//!
//! - A socket serves one client: the next one connects and then never gets a greeting. The greeting has a deadline, and
//!   [`QmpError::Held`] is only said when another connected client was seen.
//! - qapi 0.15 ends the connection at an event that it does not know. [`Lines`] takes every event out before qapi sees it.
//! - qapi 0.15 uses no ids, so that a late reply would answer the next command, and that next command panics ("QAPI duplicate
//!   command id"). A command that was cut short, by its deadline or because its future was dropped, therefore ends the use of
//!   this connection: every later one fails with [`QmpError::Disconnected`], and the caller connects again and reads the
//!   state anew.
//! - A descriptor travels on a lone newline ahead of its command: qapi has no way to send one.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use qapi::{
    ExecuteError,
    futures::{QapiService, QmpStreamTokio},
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
};

use crate::{Deadline, socket_peers, unix_socket};

/// The longest that any command may take.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the greeting may take.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// Events beyond this many that nobody took are dropped.
const EVENTS: usize = 1024;
/// A reply is at most this long (the nodes and records of hundreds of volumes are below one MiB).
const LONGEST_LINE: usize = 64 << 20;

/// Why QEMU could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// Nobody listens there.
    #[error("cannot connect to QEMU's socket {path:?}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What `connect` said.
        source: io::Error,
    },
    /// The socket is another client's, who was seen.
    #[error("QEMU's socket {path:?} is held by another client")]
    Held {
        /// The socket.
        path: PathBuf,
    },
    /// No greeting, and no other client was seen: a stopped QEMU.
    #[error("QEMU sends no greeting on {path:?}")]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// It closed the connection or sent something else.
    #[error("what listens on {path:?} is no QMP server")]
    NotQmp {
        /// The socket.
        path: PathBuf,
    },
    /// No reply in time. The connection is of no use any more.
    #[error("QEMU did not answer {command} in time")]
    TimedOut {
        /// The command.
        command: String,
    },
    /// The connection ended, or an earlier command was cut short.
    #[error("the connection to QEMU ended before {command} was answered")]
    Disconnected {
        /// The command.
        command: String,
    },
    /// QEMU refused.
    #[error("QEMU refuses {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's text.
        description: String,
    },
    /// The reply does not have the documented form.
    #[error("QEMU's answer to {command} is not understood")]
    Answer {
        /// The command.
        command: String,
    },
    /// This client's table does not list the command.
    #[error("the command {command} is not in this client's table")]
    Unlisted {
        /// The command.
        command: String,
    },
}

impl QmpError {
    /// Must the caller connect anew before the next command?
    pub fn ends_connection(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Disconnected { .. })
    }

    /// QEMU's text, where it refused.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { description, .. } => Some(description),
            _ => None,
        }
    }
}

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
    service: QapiService<QmpStreamTokio<OwnedWriteHalf>>,
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
        let greeting = async {
            let greeted = QmpStreamTokio::open_split(Lines::new(read, events), write).await?;
            let version = greeted.capabilities.QMP.version.qemu.clone();
            Ok::<_, io::Error>((greeted.negotiate().await?, version))
        };
        let (stream, version) = match deadline.within(GREETING_TIMEOUT).wait(greeting).await {
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

    /// Runs `command`; events that arrive meanwhile are kept for [`next_event`](Self::next_event).
    ///
    /// # Errors
    /// QEMU refuses it, does not answer within [`COMMAND_TIMEOUT`], or is gone.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        if std::mem::replace(&mut self.unanswered, true) {
            return Err(QmpError::Disconnected { command: command.to_owned() });
        }
        let limit = self.deadline.within(COMMAND_TIMEOUT);
        let answer = match limit.wait(send(&self.service, command, arguments)).await {
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

/// qapi wants a type for each command, with its name as a constant; the arguments and the answer stay JSON.
macro_rules! commands {
    ($($kind:ident = $name:literal,)*) => {
        $(
            #[derive(Debug, Serialize)]
            #[serde(transparent)]
            struct $kind(Value);
            impl qapi::Command for $kind {
                const NAME: &'static str = $name;
                const ALLOW_OOB: bool = false;
                type Ok = Value;
            }
            impl qapi::qmp::QmpCommand for $kind {}
        )*

        /// Sends the command of this name; `None` if it is not listed here.
        async fn send(
            service: &QapiService<QmpStreamTokio<OwnedWriteHalf>>,
            command: &str,
            arguments: Value,
        ) -> Option<Result<Value, ExecuteError>> {
            match command {
                $($name => Some(service.execute($kind(arguments)).await),)*
                _ => None,
            }
        }
    };
}

commands! {
    AddFd = "add-fd",
    BlockResize = "block_resize",
    BlockSetIoThrottle = "block_set_io_throttle",
    BlockdevAdd = "blockdev-add",
    BlockdevDel = "blockdev-del",
    Cont = "cont",
    DeviceAdd = "device_add",
    DeviceDel = "device_del",
    HumanMonitorCommand = "human-monitor-command",
    Migrate = "migrate",
    MigrateSetCapabilities = "migrate-set-capabilities",
    ObjectAdd = "object-add",
    ObjectDel = "object-del",
    QomGet = "qom-get",
    QomList = "qom-list",
    QomSet = "qom-set",
    QueryBlock = "query-block",
    QueryBlockstats = "query-blockstats",
    QueryFdsets = "query-fdsets",
    QueryMigrate = "query-migrate",
    QueryNamedBlockNodes = "query-named-block-nodes",
    QueryPci = "query-pci",
    QueryStatus = "query-status",
    QueryVersion = "query-version",
    Quit = "quit",
    RemoveFd = "remove-fd",
    Stop = "stop",
    SystemPowerdown = "system_powerdown",
}

/// QEMU's lines without its events, which go to a channel.
struct Lines {
    socket: OwnedReadHalf,
    partial: Vec<u8>,
    ready: VecDeque<u8>,
    events: mpsc::Sender<Event>,
}

impl Lines {
    fn new(socket: OwnedReadHalf, events: mpsc::Sender<Event>) -> Self {
        Self { socket, partial: Vec::new(), ready: VecDeque::new(), events }
    }

    fn take_line(&mut self, line: &[u8]) {
        match event(line) {
            // Nobody waits for events for as long as the channel is full of older ones.
            Some(event) => drop(self.events.try_send(event)),
            None => self.ready.extend(line),
        }
    }
}

fn event(line: &[u8]) -> Option<Event> {
    // Replies can be long; only what may be an event is parsed here.
    line.windows(7).any(|word| word == b"\"event\"").then_some(())?;
    let mut line: Value = serde_json::from_slice(line).ok()?;
    let name = line.get("event")?.as_str()?.to_owned();
    Some(Event { name, data: line["data"].take() })
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
