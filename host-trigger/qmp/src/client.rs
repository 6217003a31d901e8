//! One connection to a monitor: connect, run commands, pass descriptors, receive events.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::sys::socket::{
    ControlMessage, MsgFlags, Shutdown, getsockopt, sendmsg, shutdown, sockopt,
};
use qapi::{ExecuteError, futures::QmpStreamTokio};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{net::UnixStream, sync::mpsc};

use crate::{
    Deadline, PathError, QmpError, Server, Trust,
    commands::{self, Service},
    socket_peers, unix_socket,
    wire::{CommandIds, CommandWriter, Event, ListReply, MAX_EVENTS, ReplyReader, weight},
};

/// The longest that any command may take, unless the user gave more time ([`Deadline::capped`]).
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the greeting may take, likewise.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// The most memory that a list may take when it is parsed: some ten thousand volumes.
const MAX_LIST_WEIGHT: usize = 128 << 20;

/// A descriptor in a descriptor set of QEMU: `/dev/fdset/<set>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassedFd {
    /// The number of the set.
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
    list_reply: ListReply,
    /// A command was sent and its reply has not been read.
    unanswered: bool,
}

/// A reply that is a list.
#[derive(Deserialize)]
struct Reply<T> {
    #[serde(rename = "return")]
    list: T,
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
    /// Connects to the socket at `path`, waits for the greeting and leaves the negotiation mode.
    /// All of this, and every later command, ends at `deadline`; the greeting may take
    /// [`GREETING_TIMEOUT`].
    ///
    /// # Errors
    /// No process listens, another client holds the socket, QEMU is stopped, or the server is not
    /// QEMU.
    pub async fn connect(path: impl AsRef<Path>, deadline: Deadline) -> Result<Self, QmpError> {
        Self::connect_within(path, deadline, GREETING_TIMEOUT).await
    }

    /// Connects as [`connect`](Self::connect), with another limit for the greeting: a QEMU that
    /// still executes an earlier command greets late.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_within(
        path: impl AsRef<Path>,
        deadline: Deadline,
        greeting_timeout: Duration,
    ) -> Result<Self, QmpError> {
        let path = path.as_ref();
        let stream = connected(unix_socket::connect(path).await, path)?;
        Self::greet(stream, path, deadline, greeting_timeout).await
    }

    /// Connects as [`connect_within`](Self::connect_within), if `trust` includes everything on the
    /// way to the socket, and `server` listens there.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), or the path or the server is not trusted.
    pub async fn connect_trusted(
        path: &Path,
        (trust, server): (&Trust, Server),
        deadline: Deadline,
        greeting_timeout: Duration,
    ) -> Result<Self, QmpError> {
        let socket = trust.locate(path).map_err(|e| match e {
            PathError::Io(source) => QmpError::Connect { path: path.to_owned(), source },
            PathError::Untrusted(why) => why.into(),
        })?;
        let stream = connected(socket.connect().await, path)?;
        server.check(&stream, path, trust)?;
        Self::greet(stream, path, deadline, greeting_timeout).await
    }

    /// Waits for the greeting.
    async fn greet(
        stream: UnixStream,
        path: &Path,
        deadline: Deadline,
        greeting_timeout: Duration,
    ) -> Result<Self, QmpError> {
        let socket = stream
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| QmpError::Connect { path: path.to_owned(), source })?;
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let (read, write) = stream.into_split();
        let (ids, list_reply) = (CommandIds::new(), ListReply::default());
        let greeting = async {
            let reader = ReplyReader::new(read, ids.clone(), sender, list_reply.clone());
            let writer = CommandWriter::new(write, ids);
            let greeted = QmpStreamTokio::open_split(reader, writer).await?;
            let version = greeted.capabilities.QMP.version.qemu.clone();
            Ok::<_, io::Error>((greeted.negotiate().await?, version))
        };
        let (stream, version) = match deadline.capped(greeting_timeout).wait(greeting).await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(_)) => return Err(QmpError::NotQmp { path: path.to_owned() }),
            Err(_) => return Err(no_greeting(path, Some(socket.as_fd()))),
        };
        let (service, replies) = stream.into_parts();
        tokio::spawn(replies.into_future());
        let version = format!("{}.{}.{}", version.major, version.minor, version.micro);
        Ok(Self { service, events, socket, deadline, version, list_reply, unanswered: false })
    }

    /// Returns QEMU's version, for instance `10.0.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns the process that made the socket: QEMU, or a shim that passed it to QEMU.
    pub fn server(&self) -> Option<i32> {
        getsockopt(&self.socket, sockopt::PeerCredentials).ok().map(|peer| peer.pid())
    }

    /// Sets the deadline of later commands.
    pub fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Whether the connection can be used for another command.
    pub fn is_usable(&self) -> bool {
        !self.unanswered
    }

    /// Closes the connection. QEMU serves one client at a time: until then it greets no other
    /// client, not even the next one of this process.
    pub fn close(&mut self) {
        self.unanswered = true;
        // It fails if the connection has ended already.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Runs `command`. Events that arrive meanwhile are kept for [`next_event`](Self::next_event).
    ///
    /// # Errors
    /// QEMU refuses the command, does not reply within [`COMMAND_TIMEOUT`], or is gone.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.query(command, arguments).await
    }

    /// Runs `command` and reads the reply as `T`.
    ///
    /// # Errors
    /// As [`execute`](Self::execute), or the reply has another form.
    pub async fn query<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let reply = self.reply(command, arguments).await?;
        let read = match self.list_reply.take() {
            Some(list) if weight(&list) > MAX_LIST_WEIGHT => {
                return Err(QmpError::Answer { command: command.to_owned() });
            }
            Some(list) => serde_json::from_slice(&list).map(|Reply { list }| list),
            None => serde_json::from_value(reply),
        };
        read.map_err(|_| QmpError::Answer { command: command.to_owned() })
    }

    /// Returns QEMU's reply. A list is replaced by an empty one; see [`ListReply`].
    async fn reply(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        if std::mem::replace(&mut self.unanswered, true) {
            return Err(QmpError::Disconnected { command: command.to_owned() });
        }
        let limit = self.deadline.capped(COMMAND_TIMEOUT);
        let reply = match limit.wait(commands::send(&self.service, command, arguments)).await {
            Ok(Some(reply)) => reply,
            Ok(None) => {
                self.unanswered = false;
                return Err(QmpError::Unlisted { command: command.to_owned() });
            }
            Err(_) => return Err(QmpError::TimedOut { command: command.to_owned() }),
        };
        match reply {
            Ok(value) => {
                self.unanswered = false;
                Ok(value)
            }
            Err(ExecuteError::Qapi(error)) => {
                self.unanswered = false;
                let class = format!("{:?}", error.class);
                Err(QmpError::Refused {
                    command: command.to_owned(),
                    class,
                    description: error.desc,
                })
            }
            Err(ExecuteError::Io(_)) => Err(QmpError::Disconnected { command: command.to_owned() }),
        }
    }

    /// Passes `fd` to QEMU, into the set `set` or a new one, with the free text `opaque`.
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
        // No command is in flight, so the socket's buffer is empty and one byte does not block.
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
        let reply = self.execute("add-fd", arguments).await?;
        match (reply["fdset-id"].as_u64(), reply["fd"].as_i64()) {
            (Some(set), Some(fd)) => Ok(PassedFd { set, fd }),
            _ => Err(QmpError::Answer { command }),
        }
    }

    /// Returns the oldest event not yet taken; `None` at `deadline` or when QEMU is gone.
    pub async fn next_event(&mut self, deadline: Deadline) -> Option<Event> {
        deadline.wait(self.events.recv()).await.ok().flatten()
    }
}

/// The result of `connect` on the socket `path`.
fn connected(stream: io::Result<UnixStream>, path: &Path) -> Result<UnixStream, QmpError> {
    stream.map_err(|source| match source.kind() {
        // The listener's queue is full: other clients wait for a greeting, too.
        io::ErrorKind::WouldBlock => no_greeting(path, None),
        _ => QmpError::Connect { path: path.to_owned(), source },
    })
}

fn no_greeting(path: &Path, socket: Option<BorrowedFd<'_>>) -> QmpError {
    let server = socket
        .and_then(|socket| getsockopt(&socket, sockopt::PeerCredentials).ok())
        .map(|peer| peer.pid());
    if socket_peers::another_client(path, server) {
        QmpError::Held { path: path.to_owned() }
    } else {
        QmpError::Silent { path: path.to_owned() }
    }
}
