//! A client of the observer, a program that `init` starts in the guest beside the agent. It shows
//! the state of the guest independently of the agent.

use std::time::Duration;

use guest_observer::{PORT, Program, Reply, Request};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

use super::vsock::Vsock;
use crate::Error;

/// The observer of one guest. Each request has its own connection, except on one that
/// [`Observer::open`] returned.
#[derive(Debug, Clone)]
pub struct Observer {
    vsock: Vsock,
    limit: Duration,
}

/// One connection to the observer, for several requests.
#[derive(Debug)]
pub struct ObserverConnection {
    stream: BufReader<UnixStream>,
    limit: Duration,
}

/// What a command in the guest printed, and its exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// Exit status; 128 + n after signal n.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Observer {
    pub(crate) fn new(vsock: Vsock, limit: Duration) -> Self {
        Self { vsock, limit }
    }

    /// Opens a connection for several requests.
    ///
    /// # Errors
    /// The observer does not answer.
    pub async fn open(&self) -> Result<ObserverConnection, Error> {
        let stream = tokio::time::timeout(self.limit, self.vsock.connect(PORT)).await;
        let stream = stream
            .map_err(|_| Error::Observer(format!("no connection within {:?}", self.limit)))?;
        let stream = stream.map_err(|error| Error::Observer(format!("cannot connect: {error}")))?;
        Ok(ObserverConnection { stream: BufReader::new(stream), limit: self.limit })
    }

    /// Sends a request and returns the reply.
    ///
    /// # Errors
    /// The observer does not answer, or its answer is an error.
    pub async fn ask(&self, request: &Request) -> Result<Reply, Error> {
        self.open().await?.ask(request).await
    }

    /// Runs a command in the guest, outside of all containers.
    ///
    /// # Errors
    /// It cannot be run. A nonzero exit status is not an error.
    pub async fn run(&self, command: &[&str]) -> Result<CommandOutput, Error> {
        let argv = command.iter().map(|&word| word.to_owned()).collect();
        match self.ask(&Request::Run { argv, stdin: None }).await? {
            Reply::Ran { status, stdout, stderr } => Ok(CommandOutput { status, stdout, stderr }),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs a shell script in the guest, outside of all containers, and returns what it printed.
    ///
    /// # Panics
    /// It cannot be run, or it fails.
    pub async fn shell(&self, script: &str) -> String {
        let ran = self
            .run(&["/bin/busybox", "sh", "-c", script])
            .await
            .expect("the observer runs a script");
        assert_eq!(ran.status, 0, "in the guest: {script}\n{}{}", ran.stdout, ran.stderr);
        ran.stdout
    }

    /// Returns the device programs that are attached to this cgroup itself, not to its parents.
    ///
    /// # Errors
    /// The cgroup does not exist.
    pub async fn programs(&self, cgroup: &str) -> Result<Vec<Program>, Error> {
        match self.ask(&Request::Programs { cgroup: cgroup.to_owned() }).await? {
            Reply::Programs { programs } => Ok(programs),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes a file of the guest (one in sysfs, for example).
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn write(&self, path: &str, contents: &str) -> Result<(), Error> {
        let request = Request::Write { path: path.to_owned(), contents: contents.to_owned() };
        match self.ask(&request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

impl ObserverConnection {
    /// Sends a request and returns the reply.
    ///
    /// # Errors
    /// The observer does not answer, or its answer is an error.
    pub async fn ask(&mut self, request: &Request) -> Result<Reply, Error> {
        let talk = async {
            let mut line = serde_json::to_vec(request).expect("a request has a JSON form");
            line.push(b'\n');
            self.stream.get_mut().write_all(&line).await?;
            let mut reply = String::new();
            self.stream.read_line(&mut reply).await?;
            Ok::<_, std::io::Error>(reply)
        };
        let reply = tokio::time::timeout(self.limit, talk).await;
        let reply = reply.map_err(|_| {
            Error::Observer(format!("no answer to {request:?} within {:?}", self.limit))
        })?;
        let reply = reply
            .map_err(|error| Error::Observer(format!("connection lost at {request:?}: {error}")))?;
        match serde_json::from_str(&reply) {
            Ok(Reply::Error { message }) => Err(Error::Observer(format!("{request:?}: {message}"))),
            Ok(reply) => Ok(reply),
            Err(error) => Err(Error::Observer(format!("{request:?}: {error} in {reply:?}"))),
        }
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Observer(format!("unexpected reply {reply:?}"))
}
