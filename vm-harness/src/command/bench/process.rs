//! A process in a container that says in lines how far it is.

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines, ReadHalf, SimplexStream},
    task::JoinHandle,
};
use vm_harness::{Container, Error};

use super::subject::Subject;

/// How long it may take for its next line with KVM.
const LIMIT: Duration = Duration::from_secs(10);

/// A process that runs.
pub(super) struct Process {
    /// What it is, for errors.
    name: &'static str,
    lines: Lines<BufReader<ReadHalf<SimplexStream>>>,
    runs: JoinHandle<Result<i32, Error>>,
    limit: Duration,
}

impl Process {
    pub(super) fn start(
        subject: &Subject,
        container: &Container,
        name: &'static str,
        command: &[&str],
    ) -> Self {
        let (reader, writer) = tokio::io::simplex(4096);
        let container = container.clone();
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let runs = tokio::spawn(async move {
            container.exec_on(&command, tokio::io::empty(), writer, tokio::io::sink()).await
        });
        let lines = BufReader::new(reader).lines();
        Self { name, lines, runs, limit: subject.sandbox.guest().scaled(LIMIT) }
    }

    /// Waits for its next line.
    pub(super) async fn says(&mut self, expected: &'static str) -> Result<(), Error> {
        let line = tokio::time::timeout(self.limit, self.lines.next_line()).await;
        let line = line.map_err(|_| Error::TimedOut {
            awaited: format!("the line {expected:?} of {}", self.name),
            limit: self.limit,
            report: String::new(),
        })?;
        match line {
            Ok(Some(line)) if line == expected => Ok(()),
            other => Err(Error::Failed {
                command: self.name.to_owned(),
                message: format!("it said {other:?} in place of {expected:?}"),
            }),
        }
    }

    /// Waits for it no longer.
    pub(super) fn leave(self) {
        self.runs.abort();
    }
}
