//! Runs scenarios, and reports each.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use super::{
    super::report::{Event, PORT},
    journal,
};
use crate::{
    Error,
    panic_capture::{Panic, catch_panic},
};

/// After which time a scenario is reported to be still running, again and again. Not scaled: it is
/// for a person who waits.
const RUNNING: Duration = Duration::from_secs(60);

/// A scenario has failed, and was reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failed;

/// The report of this node.
#[derive(Debug)]
pub(super) struct Runner {
    report: File,
    /// The end of the journal as it was last reported.
    journal: String,
    running: Duration,
}

impl Runner {
    /// Opens the port of the report.
    pub(super) fn connect() -> Result<Self, Error> {
        let port = PathBuf::from(format!("/dev/virtio-ports/{PORT}"));
        let opened = File::options().write(true).open(&port);
        let report = opened.map_err(|_| Error::Missing {
            what: port.display().to_string(),
            remedy: "`vm-harness node` boots a machine that has it, and runs this there",
        })?;
        Ok(Self::reporting_to(report))
    }

    fn reporting_to(report: File) -> Self {
        Self { report, journal: String::new(), running: RUNNING }
    }

    /// Runs a scenario: `work` asserts.
    pub(super) async fn scenario<T>(
        &mut self,
        scenario: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Failed> {
        let scenario = scenario.to_owned();
        self.send(&Event::Begun { scenario: scenario.clone() });
        let start = Instant::now();
        let mut work = pin!(catch_panic(work));
        let ended = loop {
            tokio::select! {
                ended = &mut work => break ended,
                () = tokio::time::sleep(self.running) => self.still_runs(&scenario, start).await,
            }
        };
        match ended {
            Ok(result) => {
                self.send(&Event::Passed { scenario, milliseconds: milliseconds_since(start) });
                Ok(result)
            }
            Err(Panic { message, location }) => {
                let message = format!("{message} ({})", location.unwrap_or_default());
                let journal = journal::tail(Path::new("/"), journal::OF_A_FAILURE).await;
                self.send(&Event::Failed { scenario, message, journal });
                Err(Failed)
            }
        }
    }

    /// Reports what the node has been doing meanwhile: why a pod does not start is in its journal.
    async fn still_runs(&mut self, scenario: &str, start: Instant) {
        let tail = journal::tail(Path::new("/"), journal::OF_A_MINUTE).await;
        let event = Event::Running {
            scenario: scenario.to_owned(),
            milliseconds: milliseconds_since(start),
            journal: journal::lines_since(&self.journal, &tail).to_owned(),
        };
        self.send(&event);
        self.journal = tail;
    }

    /// Reports the end.
    pub(super) fn end(&mut self) {
        self.send(&Event::Ended);
    }

    fn send(&mut self, event: &Event) {
        let mut line = serde_json::to_vec(event).expect("an event has a JSON form");
        line.push(b'\n');
        // Without the port there is no reader, and QEMU is about to be killed.
        let _ = self.report.write_all(&line);
    }
}

fn milliseconds_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::program::until, *};

    #[tokio::test]
    async fn scenario_that_takes_long_is_reported_while_it_runs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = || std::fs::read_to_string(file.path()).unwrap();
        let mut runner = Runner::reporting_to(file.reopen().unwrap());
        runner.running = Duration::from_millis(10);
        let reported = async || text().matches("\"running\"").count() >= 2;
        let waits = until("two reports", Duration::from_secs(60), reported);
        assert_eq!(runner.scenario("waits", waits).await, Ok(()));
        let events: Vec<Event> =
            text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(matches!(&events[1], Event::Running { scenario, .. } if scenario == "waits"));
        assert!(matches!(&events[events.len() - 1], Event::Passed { .. }), "{events:?}");
    }

    #[tokio::test]
    async fn scenario_that_fails_is_reported_with_its_message_and_ends_the_suite() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut runner = Runner::reporting_to(file.reopen().unwrap());
        assert_eq!(runner.scenario("adds", async { 1 + 1 }).await, Ok(2));
        let failed = runner.scenario("divides", async { panic!("by zero") }).await;
        assert_eq!(failed, Err::<(), _>(Failed));
        runner.end();
        let text = std::fs::read_to_string(file.path()).unwrap();
        let events: Vec<Event> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(matches!(&events[1], Event::Passed { scenario, .. } if scenario == "adds"));
        let Event::Failed { scenario, message, .. } = &events[3] else { panic!("{events:?}") };
        assert!(scenario == "divides" && message.contains("by zero") && message.contains(".rs:"));
        assert_eq!((events.len(), &events[4]), (5, &Event::Ended));
    }
}
