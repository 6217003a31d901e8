//! One connection to a monitor: connect, run commands, pass descriptors, receive events.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
    time::Duration,
};

use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use qapi::qmp::QapiCapabilities;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{io::Interest, net::UnixStream, task::coop};

use crate::{
    Command, Deadline, Elapsed, PathError, QmpError, Replies, Server, Trust,
    replies::End,
    socket_peers, unix_socket,
    wire::{Event, Inbox, Outbox},
};

/// The longest that QEMU may take for any command, unless the user gave more time
/// ([`Deadline::capped`]).
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the greeting may take, likewise.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// How much is read at once.
const CHUNK: usize = 64 << 10;

/// A descriptor in a descriptor set of QEMU: `/dev/fdset/<set>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct PassedFd {
    /// The number of the set.
    #[serde(rename = "fdset-id")]
    pub set: u64,
    /// The descriptor's number in QEMU.
    pub fd: i64,
}

/// A connection to QEMU, ready for commands.
pub struct Qmp {
    socket: UnixStream,
    inbox: Inbox,
    buffer: Box<[u8]>,
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
        let greeting = deadline.capped(greeting_timeout);
        Ok(Self::greet(stream, path, deadline, greeting, &[]).await?.0)
    }

    /// Connects as [`connect`](Self::connect), if `trust` includes everything on the way to the
    /// socket, and `server` listens there. The greeting must come until `greeting`. The commands
    /// `first` are sent without waiting for it. They must be queries: a QEMU that greets too late
    /// may execute them later.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), or the path or the server is not trusted.
    pub async fn connect_trusted(
        path: &Path,
        (trust, server): (&Trust, Server),
        deadline: Deadline,
        greeting: Deadline,
        first: &[Command<'_>],
    ) -> Result<(Self, Replies), QmpError> {
        let socket = trust.locate(path).map_err(|e| match e {
            PathError::Io(source) => QmpError::Connect { path: path.to_owned(), source },
            PathError::Untrusted(why) => why.into(),
        })?;
        let stream = connected(socket.connect().await, path)?;
        server.check(&stream, path, trust)?;
        Self::greet(stream, path, deadline, greeting, first).await
    }

    /// Waits for the greeting, and for the replies to the commands that were sent ahead of it. QEMU
    /// reads them once it has greeted.
    async fn greet(
        socket: UnixStream,
        path: &Path,
        deadline: Deadline,
        greeting: Deadline,
        first: &[Command<'_>],
    ) -> Result<(Self, Replies), QmpError> {
        let negotiation = Command::new("qmp_capabilities", json!({}));
        let commands = [std::slice::from_ref(&negotiation), first].concat();
        // Random, so that the IDs differ from those of an earlier client, and short.
        let mut inbox = Inbox::new(fastrand::u32(10_000..100_000));
        let mut outbox = Outbox::new(&commands, inbox.expect(commands.len()));
        let (buffer, version) = (vec![0; CHUNK].into(), String::new());
        let mut this = Self { socket, inbox, buffer, deadline, version, unanswered: true };
        let not_qmp = || QmpError::NotQmp { path: path.to_owned() };
        let greeted = this.negotiate(&mut outbox);
        match greeting.wait(greeted).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(not_qmp()),
            Err(Elapsed) => return Err(no_greeting(path, Some(this.socket.as_fd()))),
        }
        let negotiated = this.inbox.take_replies(1);
        let accepted = Replies::new(&commands[..1], negotiated, None).read::<Value>();
        accepted.map_err(|_| not_qmp())?;
        let replies = this.exchange(&mut outbox, first).await;
        Ok((this, replies))
    }

    /// Reads until QEMU has greeted and has replied to the first command.
    async fn negotiate(&mut self, outbox: &mut Outbox<'_>) -> io::Result<()> {
        while self.version.is_empty() || self.inbox.arrived() == 0 {
            self.progress(outbox).await?;
            if let Some(greeting) = self.inbox.take_greeting() {
                let greeting: QapiCapabilities = serde_json::from_slice(&greeting)?;
                let qemu = greeting.QMP.version.qemu;
                self.version = format!("{}.{}.{}", qemu.major, qemu.minor, qemu.micro);
            }
        }
        Ok(())
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
        self.send_all(&[Command::new(command, arguments)]).await.read()
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
        self.send_all(&[Command::add_fd(&fd, set, opaque)]).await.read()
    }

    /// Sends all `commands` without waiting for replies in between. QEMU executes them in their
    /// order, each of them also if one before it failed. Each may take [`COMMAND_TIMEOUT`].
    pub async fn send_all(&mut self, commands: &[Command<'_>]) -> Replies {
        if std::mem::replace(&mut self.unanswered, true) {
            return Replies::new(commands, self.inbox.take_replies(0), Some(End::Lost));
        }
        let mut outbox = Outbox::new(commands, self.inbox.expect(commands.len()));
        self.exchange(&mut outbox, commands).await
    }

    /// Sends what is left in `outbox`, and reads the replies to `commands`.
    async fn exchange(&mut self, outbox: &mut Outbox<'_>, commands: &[Command<'_>]) -> Replies {
        let mut end = None;
        while end.is_none() && self.inbox.arrived() < commands.len() {
            let limit = self.deadline.capped(COMMAND_TIMEOUT);
            end = match limit.wait(self.next_reply(outbox)).await {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some(End::Lost),
                Err(Elapsed) => Some(End::TimedOut),
            };
        }
        self.unanswered = end.is_some();
        Replies::new(commands, self.inbox.take_replies(commands.len()), end)
    }

    /// Reads until another reply has arrived.
    async fn next_reply(&mut self, outbox: &mut Outbox<'_>) -> io::Result<()> {
        let arrived = self.inbox.arrived();
        while self.inbox.arrived() == arrived {
            self.progress(outbox).await?;
        }
        Ok(())
    }

    /// Sends and reads as much as is possible now, or as soon as anything is. Both, because a
    /// server whose replies are not read may stop reading commands.
    async fn progress(&mut self, outbox: &mut Outbox<'_>) -> io::Result<()> {
        // A flood of events must not keep the deadline from being noticed.
        coop::consume_budget().await;
        let interest = match outbox.is_empty() {
            true => Interest::READABLE,
            false => Interest::READABLE | Interest::WRITABLE,
        };
        let ready = self.socket.ready(interest).await?;
        if ready.is_writable() {
            outbox.send(&self.socket)?;
        }
        if ready.is_readable() {
            match self.socket.try_read(&mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.inbox.take_bytes(&self.buffer[..length])?,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Returns the oldest event not yet taken; `None` at `deadline` or when QEMU is gone.
    pub async fn next_event(&mut self, deadline: Deadline) -> Option<Event> {
        let event = async {
            loop {
                if let Some(event) = self.inbox.take_event() {
                    return Ok::<_, io::Error>(event);
                }
                self.progress(&mut Outbox::default()).await?;
            }
        };
        deadline.wait(event).await.ok()?.ok()
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
