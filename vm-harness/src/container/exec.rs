//! Processes in a container, by `ExecProcess` of Kata's agent protocol.

use std::{ops::Range, sync::atomic::Ordering};

use agent_api::agent::ExecProcessRequest;
use protobuf::MessageField;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Container,
    spec::process,
    streams::{Stream, error_unless_ended},
};
use crate::Error;

/// The output and the exit status of a process in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 + n after signal n.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Returns standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns standard error as text.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl Container {
    /// Runs a command in it, with `stdin` as its input.
    ///
    /// # Errors
    /// The command cannot be started. A nonzero exit status is not an error.
    pub async fn try_exec<S: AsRef<str>>(
        &self,
        command: &[S],
        stdin: &[u8],
    ) -> Result<Output, Error> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.exec_on(command, stdin, &mut stdout, &mut stderr).await?;
        Ok(Output { status, stdout, stderr })
    }

    /// Runs a command in it with the caller's streams, and returns its exit status. When the
    /// command has ended, the rest of `stdin` is not read.
    ///
    /// # Errors
    /// The command cannot be started. A nonzero exit status is not an error.
    pub async fn exec_on<S: AsRef<str>>(
        &self,
        command: &[S],
        stdin: impl AsyncRead,
        stdout: impl AsyncWrite,
        stderr: impl AsyncWrite,
    ) -> Result<i32, Error> {
        let exec_id = self.start_exec(command, false).await?;
        let output = async {
            tokio::try_join!(
                self.drain(&exec_id, Stream::Stdout, stdout),
                self.drain(&exec_id, Stream::Stderr, stderr),
            )?;
            self.wait_process(&exec_id).await
        };
        let input = async {
            let written = async {
                self.write_stdin(&exec_id, stdin).await?;
                self.close_stdin(&exec_id).await
            };
            error_unless_ended(written.await).await
        };
        tokio::select! {
            status = output => status,
            error = input => Err(error),
        }
    }

    /// Starts a command, and returns its exec ID.
    pub(crate) async fn start_exec<S: AsRef<str>>(
        &self,
        command: &[S],
        terminal: bool,
    ) -> Result<String, Error> {
        let exec_id =
            format!("exec-{}-{}", std::process::id(), self.execs.fetch_add(1, Ordering::Relaxed));
        let command: Vec<String> = command.iter().map(|word| word.as_ref().to_owned()).collect();
        let mut process = process(&command, &self.capabilities);
        process.Terminal = terminal;
        let request = ExecProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.clone(),
            process: MessageField::some(process),
            ..ExecProcessRequest::default()
        };
        self.call("ExecProcess", self.agent.service().exec_process(self.agent.context(), &request))
            .await?;
        Ok(exec_id)
    }

    /// Runs a command that has to succeed, and returns its standard output.
    ///
    /// # Panics
    /// It cannot be started, or it fails.
    pub async fn exec<S: AsRef<str> + std::fmt::Debug>(&self, command: &[S]) -> Vec<u8> {
        self.exec_with_input(command, b"").await
    }

    /// Runs a command that has to fail, and returns its standard error.
    ///
    /// # Panics
    /// It cannot be started, or it succeeds.
    pub async fn exec_fails<S: AsRef<str> + std::fmt::Debug>(&self, command: &[S]) -> String {
        let output = self
            .try_exec(command, b"")
            .await
            .unwrap_or_else(|error| panic!("{command:?}: {}", error.chain()));
        assert_ne!(
            output.status,
            0,
            "{command:?} succeeded in the container and should have failed: {}",
            output.text()
        );
        output.error_text()
    }

    /// Runs a command that has to succeed, with `stdin` as its input, and returns its standard
    /// output.
    ///
    /// # Panics
    /// It cannot be started, or it fails.
    pub async fn exec_with_input<S: AsRef<str> + std::fmt::Debug>(
        &self,
        command: &[S],
        stdin: &[u8],
    ) -> Vec<u8> {
        let output = self
            .try_exec(command, stdin)
            .await
            .unwrap_or_else(|error| panic!("{command:?}: {}", error.chain()));
        assert_eq!(
            output.status,
            0,
            "{command:?} failed in the container: {}",
            output.error_text()
        );
        output.stdout
    }

    /// Reads a range of a file or a device in it.
    ///
    /// # Panics
    /// It cannot be read.
    pub async fn read(&self, path: &str, range: Range<u64>) -> Vec<u8> {
        let length = range.end - range.start;
        let command = [
            "dd".to_owned(),
            format!("if={path}"),
            "bs=64k".to_owned(),
            "iflag=skip_bytes,count_bytes,fullblock".to_owned(),
            format!("skip={}", range.start),
            format!("count={length}"),
        ];
        self.exec(&command).await
    }

    /// Writes `bytes` at `offset` of a file or a device in it, and flushes them (`fsync`).
    ///
    /// # Panics
    /// They cannot be written.
    pub async fn write(&self, path: &str, offset: u64, bytes: &[u8]) {
        let command = [
            "dd".to_owned(),
            format!("of={path}"),
            "bs=64k".to_owned(),
            "iflag=fullblock".to_owned(),
            "oflag=seek_bytes".to_owned(),
            format!("seek={offset}"),
            "conv=notrunc,fsync".to_owned(),
        ];
        self.exec_with_input(&command, bytes).await;
    }
}
