//! The three streams of a process: [`pipe(7)`](https://man7.org/linux/man-pages/man7/pipe.7.html),
//! or a terminal ([`pty(7)`](https://man7.org/linux/man-pages/man7/pty.7.html)), whose output can be
//! read as either of the two.

use std::{
    io::{self, PipeReader, PipeWriter},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    net::unix::pipe::{Receiver, Sender},
    sync,
};

use crate::{
    error::{Error, at},
    terminal::Terminal,
};

/// The maximum size of a reply to a read, whatever the caller requests.
const LARGEST_READ: usize = 1 << 20;

/// The agent's ends of a process's pipes, or its end of a terminal.
#[derive(Debug)]
pub(crate) struct Streams {
    stdin: End<sync::Mutex<Sender>>,
    stdout: End<sync::Mutex<Receiver>>,
    stderr: End<sync::Mutex<Receiver>>,
    terminal: End<Terminal>,
}

/// What is open until it is closed, and in use until the last call with it has ended. Each stream
/// has its own lock, so that a waiting read does not block the others.
#[derive(Debug)]
struct End<T>(Mutex<Option<Arc<T>>>);

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

impl<T> End<T> {
    fn open(end: T) -> Self {
        Self::shared(&Arc::new(end))
    }

    fn shared(end: &Arc<T>) -> Self {
        Self(Mutex::new(Some(Arc::clone(end))))
    }

    fn absent() -> Self {
        Self(Mutex::new(None))
    }

    fn get(&self) -> Option<Arc<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
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
        let reader = |pipe: PipeReader| {
            Receiver::from_owned_fd(pipe.into()).map(|pipe| End::open(sync::Mutex::new(pipe)))
        };
        let ours = Self {
            stdin: End::open(sync::Mutex::new(Sender::from_owned_fd(our_stdin.into())?)),
            stdout: reader(our_stdout)?,
            stderr: reader(our_stderr)?,
            terminal: End::absent(),
        };
        Ok((ours, ChildStreams { stdin, stdout, stderr }))
    }

    /// Uses a terminal for input and both outputs.
    pub(crate) fn terminal(terminal: Terminal) -> Result<Self, Error> {
        let (input, output) = terminal.streams()?;
        let output = Arc::new(sync::Mutex::new(output));
        Ok(Self {
            stdin: End::open(sync::Mutex::new(input)),
            stdout: End::shared(&output),
            stderr: End::shared(&output),
            terminal: End::open(terminal),
        })
    }

    /// Reads available output, or waits for it. At the end of a pipe there is none; at the end of a
    /// terminal the kernel reports `EIO`.
    pub(crate) async fn read(&self, output: Output, length: usize) -> Result<Vec<u8>, Error> {
        let stream = match output {
            Output::Stdout => &self.stdout,
            Output::Stderr => &self.stderr,
        };
        let stream = stream.get().ok_or(Error::Closed("output"))?;
        let receiver = stream.lock().await;
        let mut bytes = vec![0; length.clamp(1, LARGEST_READ)];
        loop {
            receiver.readable().await.map_err(at("waiting for output"))?;
            match receiver.try_read(&mut bytes) {
                Ok(length) => {
                    bytes.truncate(length);
                    return Ok(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(at("reading output")(error)),
            }
        }
    }

    /// Writes all of `bytes`, as fast as the process reads them.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> Result<(), Error> {
        let stream = self.stdin.get().ok_or(Error::Closed("input"))?;
        let sender = stream.lock().await;
        while !bytes.is_empty() {
            sender.writable().await.map_err(at("waiting for input to be taken"))?;
            match sender.try_write(bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(at("writing input")(error)),
            }
        }
        Ok(())
    }

    /// Sets the size of the terminal.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        self.terminal.get().ok_or(Error::NoTerminal)?.resize(rows, columns)
    }

    /// Closes the input. A terminal has one end for input and output, and is closed.
    pub(crate) fn close_stdin(&self) {
        match self.terminal.get() {
            Some(_) => self.close(),
            None => self.stdin.close(),
        }
    }

    /// Closes all streams. What is in them is lost, except for calls under way.
    pub(crate) fn close(&self) {
        self.stdin.close();
        self.stdout.close();
        self.stderr.close();
        self.terminal.close();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[tokio::test]
    async fn output_is_read_in_pieces_and_every_read_at_its_end_is_empty() {
        let (streams, mut child) = Streams::new().unwrap();
        child.stdout.write_all(b"hello").unwrap();
        drop(child);
        assert_eq!(streams.read(Output::Stdout, 3).await.unwrap(), b"hel");
        assert_eq!(streams.read(Output::Stdout, 100).await.unwrap(), b"lo");
        for output in [Output::Stdout, Output::Stdout, Output::Stderr] {
            assert_eq!(streams.read(output, 100).await.unwrap(), b"");
        }
    }

    #[tokio::test]
    async fn a_waiting_read_does_not_block_the_other_streams() {
        let (streams, mut child) = Streams::new().unwrap();
        let streams = Arc::new(streams);
        let waiting = tokio::spawn({
            let streams = Arc::clone(&streams);
            async move { streams.read(Output::Stdout, 10).await }
        });
        tokio::task::yield_now().await;
        child.stderr.write_all(b"oops").unwrap();
        assert_eq!(streams.read(Output::Stderr, 10).await.unwrap(), b"oops");
        streams.write(b"in").await.unwrap();
        child.stdout.write_all(b"late").unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), b"late");
    }

    #[tokio::test]
    async fn closed_input_is_at_its_end_and_accepts_no_more() {
        let (streams, mut child) = Streams::new().unwrap();
        streams.write(b"line").await.unwrap();
        streams.close_stdin();
        let mut text = String::new();
        child.stdin.read_to_string(&mut text).unwrap();
        assert_eq!(text, "line");
        assert!(matches!(streams.write(b"x").await, Err(Error::Closed("input"))));
        child.stdout.write_all(b"on").unwrap();
        assert_eq!(streams.read(Output::Stdout, 2).await.unwrap(), b"on");
    }

    #[tokio::test]
    async fn a_write_larger_than_the_pipe_ends_when_all_of_it_was_taken() {
        let (streams, mut child) = Streams::new().unwrap();
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            child.stdin.read_to_end(&mut bytes).map(|_| bytes.len())
        });
        streams.write(&vec![0; 1 << 20]).await.unwrap();
        streams.close_stdin();
        assert_eq!(reading.join().unwrap().unwrap(), 1 << 20);
    }
}
