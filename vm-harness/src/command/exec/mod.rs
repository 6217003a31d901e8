//! `vm-harness exec`: a command in a container of a sandbox that another process runs; with `-t` on
//! a terminal.

mod raw_terminal;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use tokio::{
    io::{AsyncRead, empty, stderr, stdin, stdout},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use vm_harness::{Container, Error, RunningVm};

use self::raw_terminal::RawTerminal;

/// What to run, and where.
#[derive(Debug, Args)]
#[command(before_help = "Example: vm-harness exec -it -- sh")]
pub(crate) struct Exec {
    /// The run directory that `boot` printed; not needed if there is only one sandbox
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// The container's ID, or the beginning of it; not needed if there is only one container
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    container: String,
    /// Pass standard input on
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal, of the size of the caller's
    #[arg(long, short)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(self) -> Result<ExitCode, Error> {
        let vm = RunningVm::find(self.run_dir.as_deref())?;
        let container = Container::find(vm.run_dir(), &self.container).await?;
        let status = match self.interactive {
            true => self.run_with(&container, stdin()).await?,
            false => self.run_with(&container, empty()).await?,
        };
        Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
    }

    async fn run_with(&self, container: &Container, input: impl AsyncRead) -> Result<i32, Error> {
        if !self.tty {
            return container.exec_on(&self.command, input, stdout(), stderr()).await;
        }
        let no_terminal = |source| Error::File {
            action: "use as a terminal",
            path: "standard input".into(),
            source,
        };
        let _raw = RawTerminal::enter().map_err(no_terminal)?;
        let (sizes, size) = watch::channel(RawTerminal::size());
        let mut changed = listen(SignalKind::window_change())?;
        let (mut terminate, mut hang_up) =
            (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
        let follow_size = async {
            while changed.recv().await.is_some() {
                sizes.send_replace(RawTerminal::size());
            }
        };
        // Whichever comes first, the terminal is restored.
        tokio::select! {
            status = container.exec_in_terminal(&self.command, size, input, stdout()) => status,
            () = follow_size => Ok(1),
            _ = terminate.recv() => Ok(128 + SignalKind::terminate().as_raw_value()),
            _ = hang_up.recv() => Ok(128 + SignalKind::hangup().as_raw_value()),
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(|source| Error::File { action: "watch", path: "signals".into(), source })
}
