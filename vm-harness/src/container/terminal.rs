//! Processes in a container with a terminal, as of `kubectl exec -t`: `ExecProcess` with
//! `Terminal`, and `TtyWinResize`.

use agent_api::agent::TtyWinResizeRequest;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    sync::watch,
};

use super::{
    Container,
    streams::{Stream, error_unless_ended},
};
use crate::Error;

/// The character that ends the input of a terminal: Ctrl-D.
const END_OF_INPUT: &[u8] = &[4];

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of each line.
    pub columns: u16,
}

impl Container {
    /// Runs a command in it with a terminal, and returns its exit status. `input` is typed on the
    /// terminal, `output` gets what it shows, and its size follows `sizes`.
    ///
    /// # Errors
    /// The command cannot be started. A nonzero exit status is not an error.
    pub async fn exec_in_terminal<S: AsRef<str>>(
        &self,
        command: &[S],
        mut sizes: watch::Receiver<TerminalSize>,
        input: impl AsyncRead,
        output: impl AsyncWrite,
    ) -> Result<i32, Error> {
        let exec_id = self.start_exec(command, true).await?;
        let size = *sizes.borrow_and_update();
        // Before the first input, so that a program that it starts gets the right size.
        self.resize_terminal(&exec_id, size).await?;
        let shown = async {
            self.drain(&exec_id, Stream::Stdout, output).await?;
            self.wait_process(&exec_id).await
        };
        let resized = async {
            while sizes.changed().await.is_ok() {
                let size = *sizes.borrow_and_update();
                self.resize_terminal(&exec_id, size).await?;
            }
            Ok(())
        };
        tokio::select! {
            status = shown => status,
            error = async {
                let written = self.write_stdin(&exec_id, input.chain(END_OF_INPUT)).await;
                error_unless_ended(written).await
            } => Err(error),
            error = async { error_unless_ended(resized.await).await } => Err(error),
        }
    }

    async fn resize_terminal(&self, exec_id: &str, size: TerminalSize) -> Result<(), Error> {
        let request = TtyWinResizeRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            row: size.rows.into(),
            column: size.columns.into(),
            ..Default::default()
        };
        self.call(
            "TtyWinResize",
            self.agent.service().tty_win_resize(self.agent.context(), &request),
        )
        .await?;
        Ok(())
    }
}
