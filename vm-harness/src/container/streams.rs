//! The streams of a process in a container, and its exit status.

use agent_api::agent::{
    CloseStdinRequest, ReadStreamRequest, WaitProcessRequest, WriteStreamRequest,
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Container;
use crate::Error;

/// The maximum size of a read of a stream. Linux since 6.12 (seen with 6.12.107) splits a packet of
/// more than 32 KiB into several buffers, and vhost-device-vsock 0.3.0 never forwards such a
/// packet.
const LARGEST_READ: u32 = 16 * 1024;

impl Container {
    /// Writes all of `stdin` to the process.
    pub(super) async fn write_stdin(
        &self,
        exec_id: &str,
        stdin: impl AsyncRead,
    ) -> Result<(), Error> {
        tokio::pin!(stdin);
        let mut chunk = vec![0; 256 * 1024];
        loop {
            let length =
                stdin.read(&mut chunk).await.map_err(Error::file("read", "standard input"))?;
            if length == 0 {
                return Ok(());
            }
            let mut rest = &chunk[..length];
            while !rest.is_empty() {
                let request = WriteStreamRequest {
                    container_id: self.id.clone(),
                    exec_id: exec_id.to_owned(),
                    data: rest.to_vec(),
                    ..WriteStreamRequest::default()
                };
                let written = self
                    .call(
                        "WriteStdin",
                        self.agent.service().write_stdin(self.agent.context(), &request),
                    )
                    .await?;
                rest = &rest[usize::try_from(written.len).unwrap_or(rest.len()).min(rest.len())..];
            }
        }
    }

    pub(super) async fn close_stdin(&self, exec_id: &str) -> Result<(), Error> {
        let request = CloseStdinRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.call("CloseStdin", self.agent.service().close_stdin(self.agent.context(), &request))
            .await?;
        Ok(())
    }

    /// Copies a stream of the process to its end. Nothing may wait for the process before: see
    /// [`Self::wait_process`].
    pub(super) async fn drain(
        &self,
        exec_id: &str,
        stream: Stream,
        to: impl AsyncWrite,
    ) -> Result<(), Error> {
        tokio::pin!(to);
        let request = ReadStreamRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            len: LARGEST_READ,
            ..ReadStreamRequest::default()
        };
        let (name, context) = (stream.name(), self.agent.context());
        loop {
            // A read waits until the process writes something, so it has no time limit of its own,
            // as other calls have.
            let answer = match stream {
                Stream::Stdout => self.agent.service().read_stdout(context.clone(), &request).await,
                Stream::Stderr => self.agent.service().read_stderr(context.clone(), &request).await,
            };
            match answer {
                Ok(answer) if answer.data.is_empty() => break,
                Ok(answer) => {
                    to.write_all(&answer.data).await.map_err(Error::file("write to", name))?
                }
                Err(ttrpc::Error::RpcStatus(status)) if is_end(&status.message) => break,
                Err(source) => return Err(Error::Agent { call: name, source }),
            }
        }
        to.flush().await.map_err(Error::file("write to", name))
    }

    /// Waits until the process has ended, and returns its exit status. kata-agent closes the
    /// streams with its reply and forgets the process: output that was not read until then is lost,
    /// so both outputs are drained before, as Kata's shim does it.
    pub(super) async fn wait_process(&self, exec_id: &str) -> Result<i32, Error> {
        let request = WaitProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let answer = self.agent.service().wait_process(self.agent.context(), &request).await;
        Ok(answer.map_err(|source| Error::Agent { call: "WaitProcess", source })?.status)
    }
}

/// Whether the message of an error status is the end of a stream, and not a loss of what follows.
/// kata-agent 4 replies without data at the end of a pipe; 3.x reports an error. That of a terminal
/// is the kernel's `EIO`.
fn is_end(message: &str) -> bool {
    ["eof", "EIO", "os error 5)"].iter().any(|end| message.contains(end))
}

/// Returns the error of writing to a process. A process may end without reading all of its input:
/// then, and on success, this never returns.
pub(super) async fn error_unless_ended(written: Result<(), Error>) -> Error {
    match written {
        Ok(()) | Err(Error::Agent { source: ttrpc::Error::RpcStatus(_), .. }) => {
            std::future::pending().await
        }
        Err(error) => error,
    }
}

/// An output stream of a process.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "ReadStdout",
            Self::Stderr => "ReadStderr",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::kata_3("read meet eof", true)]
    #[case::kata_3_after_the_exit("eof", true)]
    #[case::terminal("reading output: Input/output error (os error 5)", true)]
    #[case::terminal_of_kata_3("EIO: I/O error", true)]
    #[case::waited_for("Invalid exec id", false)]
    #[case::closed("cannot get stream reader", false)]
    #[case::another_error("Cannot allocate memory (os error 12)", false)]
    fn end_of_a_stream_and_a_lost_stream_are_distinguished(
        #[case] message: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(is_end(message), expected);
    }
}
