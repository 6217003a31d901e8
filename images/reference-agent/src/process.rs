//! A process of a container: its handle
//! ([`pidfd_open(2)`](https://man7.org/linux/man-pages/man2/pidfd_open.2.html)), its exit status,
//! and its three streams ([`pipe(7)`](https://man7.org/linux/man-pages/man7/pipe.7.html)) or its
//! terminal ([`pty(7)`](https://man7.org/linux/man-pages/man7/pty.7.html)).

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    io::Errno,
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    net::unix::pipe::{Receiver, Sender},
    sync::Mutex,
};

use crate::{
    error::{Error, at},
    reaper::{self, Exit},
    terminal::Terminal,
};

/// The maximum size of a reply to a read, whatever the caller requests.
const LARGEST_READ: usize = 1 << 20;

/// A process that crun started, in the agent's pid namespace.
#[derive(Debug)]
pub(crate) struct Process {
    /// `None` if it had ended before a handle could be opened.
    handle: Option<OwnedFd>,
    exit: Exit,
    /// Whether a caller has received its exit status.
    waited_for: AtomicBool,
    streams: Streams,
}

/// The agent's ends of a process's pipes. A stream is closed as soon as it is at its end. Each has
/// its own lock, so that a waiting read does not block the others.
#[derive(Debug)]
pub(crate) struct Streams {
    stdin: Mutex<Option<Sender>>,
    stdout: Mutex<Option<Receiver>>,
    stderr: Mutex<Option<Receiver>>,
    terminal: Option<Terminal>,
}

/// The process's ends of the pipes.
#[derive(Debug)]
pub(crate) struct ChildStreams {
    pub(crate) stdin: PipeReader,
    pub(crate) stdout: PipeWriter,
    pub(crate) stderr: PipeWriter,
}

/// One of the two outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

impl Streams {
    /// Creates three pipes.
    pub(crate) fn new() -> Result<(Self, ChildStreams), Error> {
        Self::pipes().map_err(at("making pipes"))
    }

    fn pipes() -> io::Result<(Self, ChildStreams)> {
        let (stdin, our_stdin) = io::pipe()?;
        let (our_stdout, stdout) = io::pipe()?;
        let (our_stderr, stderr) = io::pipe()?;
        let ours = Self {
            stdin: Mutex::new(Some(Sender::from_owned_fd(our_stdin.into())?)),
            stdout: Mutex::new(Some(Receiver::from_owned_fd(our_stdout.into())?)),
            stderr: Mutex::new(Some(Receiver::from_owned_fd(our_stderr.into())?)),
            terminal: None,
        };
        Ok((ours, ChildStreams { stdin, stdout, stderr }))
    }

    /// Uses a terminal for input and standard output. There is no standard error.
    pub(crate) fn terminal(terminal: Terminal) -> Result<Self, Error> {
        let (input, output) = terminal.streams()?;
        Ok(Self {
            stdin: Mutex::new(Some(input)),
            stdout: Mutex::new(Some(output)),
            stderr: Mutex::new(None),
            terminal: Some(terminal),
        })
    }

    pub(crate) async fn read(&self, output: Output, length: usize) -> Result<Vec<u8>, Error> {
        let stream = match output {
            Output::Stdout => &self.stdout,
            Output::Stderr => &self.stderr,
        };
        let mut stream = stream.lock().await;
        let receiver = stream.as_ref().ok_or(Error::EndOfFile)?;
        let mut bytes = vec![0; length.clamp(1, LARGEST_READ)];
        let length = loop {
            receiver.readable().await.map_err(at("waiting for output"))?;
            match receiver.try_read(&mut bytes) {
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // No process has the terminal open any more.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => break 0,
                Err(error) => return Err(at("reading output")(error)),
            }
        };
        if length == 0 {
            *stream = None;
            return Err(Error::EndOfFile);
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Writes as much as the pipe accepts now, at least one byte, and returns the number of bytes.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        let stream = self.stdin.lock().await;
        let sender = stream.as_ref().ok_or(Error::EndOfFile)?;
        loop {
            sender.writable().await.map_err(at("waiting for input to be taken"))?;
            match sender.try_write(bytes) {
                Ok(length) => return Ok(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(at("writing input")(error)),
            }
        }
    }

    async fn close_stdin(&self) {
        *self.stdin.lock().await = None;
    }

    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        self.terminal.as_ref().ok_or(Error::NoTerminal)?.resize(rows, columns)
    }

    /// Whether both outputs are at end of file and closed.
    pub(crate) fn drained(&self) -> bool {
        let closed = |stream: &Mutex<Option<Receiver>>| {
            stream.try_lock().is_ok_and(|stream| stream.is_none())
        };
        closed(&self.stdout) && closed(&self.stderr)
    }
}

impl Process {
    /// Opens a handle of `pid`, which crun left to the agent. As long as `exit` has no status, the
    /// agent has not reaped the process and its ID cannot have been reused.
    pub(crate) fn new(pid: u32, exit: Exit, streams: Streams) -> Result<Self, Error> {
        let waited_for = AtomicBool::new(false);
        if exit.borrow().is_some() {
            return Ok(Self { handle: None, exit, waited_for, streams });
        }
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let raw =
            raw.ok_or_else(|| at(format!("process id {pid}"))(io::ErrorKind::InvalidData.into()))?;
        let handle = pidfd_open(raw, PidfdFlags::empty())
            .map_err(|e| at(format!("pidfd of {pid}"))(e.into()))?;
        Ok(Self { handle: Some(handle), exit, waited_for, streams })
    }

    /// Returns its pidfd, unless it had ended before one could be opened.
    pub(crate) fn handle(&self) -> Option<&OwnedFd> {
        self.handle.as_ref()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Waits for its end and returns its exit status.
    pub(crate) async fn wait(&self) -> i32 {
        let status = reaper::ended(&mut self.exit.clone()).await;
        self.waited_for.store(true, Ordering::Relaxed);
        status
    }

    /// Sends it a signal. Succeeds without effect if it has ended.
    pub(crate) fn signal(&self, number: u32) -> Result<(), Error> {
        let signal = i32::try_from(number)
            .ok()
            .and_then(Signal::from_named_raw)
            .ok_or(Error::Unsupported("this signal"))?;
        let Some(handle) = &self.handle else { return Ok(()) };
        match pidfd_send_signal(handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(at(format!("sending signal {number}"))(errno.into())),
        }
    }

    /// Reads available output, or waits for it.
    pub(crate) async fn read(&self, output: Output, length: usize) -> Result<Vec<u8>, Error> {
        self.streams.read(output, length).await
    }

    /// Writes to its input.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.streams.write(bytes).await
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        self.streams.resize(rows, columns)
    }

    /// Closes its input.
    pub(crate) async fn close_stdin(&self) {
        self.streams.close_stdin().await;
    }

    /// Whether a caller has its exit status and all of its output.
    pub(crate) fn is_finished(&self) -> bool {
        self.waited_for.load(Ordering::Relaxed) && self.streams.drained()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[tokio::test]
    async fn output_is_read_in_pieces_and_reads_after_its_end_fail() {
        let (streams, mut child) = Streams::new().unwrap();
        child.stdout.write_all(b"hello").unwrap();
        drop(child);
        assert_eq!(streams.read(Output::Stdout, 3).await.unwrap(), b"hel");
        assert_eq!(streams.read(Output::Stdout, 100).await.unwrap(), b"lo");
        for _ in 0..2 {
            assert!(matches!(streams.read(Output::Stdout, 100).await, Err(Error::EndOfFile)));
        }
        assert!(!streams.drained());
        assert!(matches!(streams.read(Output::Stderr, 100).await, Err(Error::EndOfFile)));
        assert!(streams.drained());
    }

    #[tokio::test]
    async fn a_waiting_read_does_not_block_the_other_streams() {
        let (streams, mut child) = Streams::new().unwrap();
        let streams = std::sync::Arc::new(streams);
        let waiting = tokio::spawn({
            let streams = std::sync::Arc::clone(&streams);
            async move { streams.read(Output::Stdout, 10).await }
        });
        tokio::task::yield_now().await;
        child.stderr.write_all(b"oops").unwrap();
        assert_eq!(streams.read(Output::Stderr, 10).await.unwrap(), b"oops");
        assert_eq!(streams.write(b"in").await.unwrap(), 2);
        child.stdout.write_all(b"late").unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), b"late");
    }

    #[tokio::test]
    async fn closed_input_is_at_its_end_and_accepts_no_more() {
        let (streams, mut child) = Streams::new().unwrap();
        assert_eq!(streams.write(b"line").await.unwrap(), 4);
        streams.close_stdin().await;
        let mut text = String::new();
        child.stdin.read_to_string(&mut text).unwrap();
        assert_eq!(text, "line");
        assert!(matches!(streams.write(b"x").await, Err(Error::EndOfFile)));
    }

    #[tokio::test]
    async fn a_write_larger_than_the_pipe_returns_how_much_was_written() {
        let (streams, _child) = Streams::new().unwrap();
        let written = streams.write(&vec![0; 1 << 20]).await.unwrap();
        assert!((1..1 << 20).contains(&written), "{written}");
    }
}
