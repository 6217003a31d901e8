//! A process of a container: its handle
//! ([`pidfd_open(2)`](https://man7.org/linux/man-pages/man2/pidfd_open.2.html)), its exit status,
//! and its streams.
//!
//! What a client can notice is as in kata-agent 4.1: a read that waits when the process ends gets
//! what is still in the stream, for half a second; the reply to `WaitProcess` closes the streams,
//! and what was not read until then is lost.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::Notify;

use crate::{
    error::{Error, at},
    reaper::{self, Exit},
    streams::{Output, Streams},
};

/// How long a read that waits when the process ends waits on: another process may have the stream
/// open, too.
const DRAIN: Duration = Duration::from_millis(500);

/// A process that crun started, in the agent's pid namespace.
#[derive(Debug)]
pub(crate) struct Process {
    /// `None` if it had ended before a handle could be opened.
    handle: Option<OwnedFd>,
    exit: Exit,
    streams: Streams,
    /// Notified when the streams are closed.
    closed: Notify,
}

impl Process {
    /// Opens a handle of `pid`, which crun left to the agent. As long as `exit` has no status, the
    /// agent has not reaped the process and its ID cannot have been reused.
    pub(crate) fn new(pid: u32, exit: Exit, streams: Streams) -> Result<Self, Error> {
        let closed = Notify::new();
        if exit.borrow().is_some() {
            return Ok(Self { handle: None, exit, streams, closed });
        }
        let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let raw = raw.ok_or_else(|| {
            at(format!("process id {pid}"))(std::io::ErrorKind::InvalidData.into())
        })?;
        let handle = pidfd_open(raw, PidfdFlags::empty())
            .map_err(|e| at(format!("pidfd of {pid}"))(e.into()))?;
        Ok(Self { handle: Some(handle), exit, streams, closed })
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
        reaper::ended(&mut self.exit.clone()).await
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

    /// Reads available output, or waits for it. At the end of the stream there is none.
    pub(crate) async fn read(&self, output: Output, length: usize) -> Result<Vec<u8>, Error> {
        let read = self.streams.read(output, length);
        tokio::pin!(read);
        tokio::select! {
            biased;
            bytes = &mut read => bytes,
            () = self.ends() => match tokio::time::timeout(DRAIN, read).await {
                Ok(bytes) => bytes,
                Err(_) => {
                    tracing::warn!("another process has the stream of a process that ended");
                    Ok(Vec::new())
                }
            }
        }
    }

    /// Waits for the next of two events: the process ends, the streams are closed. One that was
    /// before this call is not waited for again.
    async fn ends(&self) {
        let mut exit = self.exit.clone();
        exit.mark_unchanged();
        tokio::select! {
            // The reaper drops its end of the channel after the only change.
            Ok(()) = exit.changed() => {}
            () = self.closed.notified() => {}
        }
    }

    /// Writes to its input.
    pub(crate) async fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.streams.write(bytes).await
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Result<(), Error> {
        self.streams.resize(rows, columns)
    }

    /// Closes its input; a terminal is closed as a whole.
    pub(crate) fn close_stdin(&self) {
        self.streams.close_stdin();
    }

    /// Closes its streams. Whoever waits for output gets what is there, within half a second.
    pub(crate) fn close(&self) {
        self.streams.close();
        self.closed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::Arc};

    use tokio::sync::watch;

    use super::*;
    use crate::streams::ChildStreams;

    /// A process that the test ends, with the process's ends of its streams.
    fn process() -> (Arc<Process>, watch::Sender<Option<i32>>, ChildStreams) {
        let (ending, exit) = watch::channel(None);
        let (streams, child) = Streams::new().unwrap();
        let process = Process::new(std::process::id(), exit, streams).unwrap();
        (Arc::new(process), ending, child)
    }

    /// Starts a read that waits.
    async fn waiting_read(
        process: &Arc<Process>,
    ) -> tokio::task::JoinHandle<Result<Vec<u8>, Error>> {
        let process = Arc::clone(process);
        let read = tokio::spawn(async move { process.read(Output::Stdout, 10).await });
        tokio::task::yield_now().await;
        assert!(!read.is_finished());
        read
    }

    #[tokio::test]
    async fn output_that_is_unread_when_the_streams_are_closed_is_lost() {
        let (process, ending, mut child) = process();
        child.stdout.write_all(b"one two").unwrap();
        ending.send_replace(Some(0));
        drop((ending, child));
        assert_eq!(process.wait().await, 0);
        assert_eq!(process.read(Output::Stdout, 4).await.unwrap(), b"one ");
        process.close();
        let lost = process.read(Output::Stdout, 4).await;
        assert!(matches!(lost, Err(Error::Closed("output"))), "{lost:?}");
        let closed = process.write(b"x").await;
        assert!(matches!(closed, Err(Error::Closed("input"))), "{closed:?}");
    }

    #[tokio::test]
    async fn a_read_that_waits_at_the_end_gets_the_last_output() {
        let (process, ending, mut child) = process();
        let read = waiting_read(&process).await;
        ending.send_replace(Some(0));
        drop(ending);
        tokio::task::yield_now().await;
        child.stdout.write_all(b"last").unwrap();
        assert_eq!(read.await.unwrap().unwrap(), b"last");
    }

    #[tokio::test]
    async fn a_child_with_the_stream_open_ends_a_read_of_before_and_delays_one_of_after_the_end() {
        let (process, ending, mut child) = process();
        let read = waiting_read(&process).await;
        ending.send_replace(Some(0));
        drop(ending);
        assert_eq!(read.await.unwrap().unwrap(), b"");
        // The child writes later than a read of before the end would have waited.
        let read = waiting_read(&process).await;
        assert!(tokio::time::timeout(2 * DRAIN, process.ends()).await.is_err());
        child.stdout.write_all(b"late").unwrap();
        assert_eq!(read.await.unwrap().unwrap(), b"late");
        let read = waiting_read(&process).await;
        process.close();
        assert_eq!(read.await.unwrap().unwrap(), b"");
    }
}
