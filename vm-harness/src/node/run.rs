//! Boots a node, and passes on what it reports.

use std::time::Duration;

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{
    Node,
    image::NodeImage,
    machine::{Files, command},
    report::Event,
};
use crate::{
    Accelerator, Console, Environment, Error, Guest, Origin, Process,
    vm::{accelerator::KvmTrial, boot_snapshot::in_path, run_dir::short_directory},
};

/// How long the node may take to report something with KVM: to boot, or to finish a scenario, for
/// which it boots a VM.
const EVENT: Duration = Duration::from_secs(300);

impl Node {
    /// Boots the node and runs the suite in it. `listener` gets each event when it happens.
    ///
    /// # Errors
    /// The machine lacks something, or the node does not boot, or ends.
    pub async fn run(
        &self,
        environment: &Environment,
        listener: &mut dyn FnMut(&Event),
    ) -> Result<bool, Error> {
        let choice = Accelerator::choose()?;
        let trial = KvmTrial::new(&environment.cache);
        if choice.accelerator == Accelerator::Kvm && choice.needs_trial && !trial.has_failed() {
            match self.boot(environment, Accelerator::Kvm).await {
                Ok(booted) => return booted.listen(listener).await,
                Err(error) if error.is_of_the_machine() => return Err(error),
                Err(error) => {
                    tracing::warn!(error = error.chain(), "the node does not boot with KVM");
                    trial.record_failure();
                }
            }
        }
        let accelerator = if choice.needs_trial { Accelerator::Tcg } else { choice.accelerator };
        self.boot(environment, accelerator).await?.listen(listener).await
    }

    /// Boots the node until its suite begins.
    async fn boot(
        &self,
        environment: &Environment,
        accelerator: Accelerator,
    ) -> Result<Booted, Error> {
        let image = NodeImage::make(self, environment, accelerator)?;
        let directory = short_directory()?;
        let [console, report, stderr] =
            ["console.log", "report.sock", "qemu.stderr"].map(|name| directory.path().join(name));
        let listener = UnixListener::bind(&report).map_err(Error::file("listen on", &report))?;
        let files = Files { console: &console, report: &report };
        let command = command(&in_path(&environment.qemu), accelerator, &image, files);
        let qemu = Process::start("QEMU", command, &stderr)?;
        let guest = Guest {
            qemu_id: qemu.id(),
            qemu,
            vsock: None,
            share: None,
            console: Console::new(console),
            accelerator,
            time_scale: accelerator.configured_time_scale()?,
            origin: Origin::Booted("a node is never saved".to_owned()),
        };
        let connected = guest.wait_for("QEMU's connection", EVENT, listener.accept()).await?;
        let (stream, _) = connected.map_err(Error::file("accept on", &report))?;
        let mut booted = Booted {
            guest,
            events: BufReader::new(stream),
            first: Event::Ended,
            _image: image,
            _directory: directory,
        };
        booted.first = booted.next("the beginning of the suite", &mut |_| ()).await?;
        Ok(booted)
    }
}

/// A node whose suite runs. Dropping it ends QEMU.
struct Booted {
    guest: Guest,
    events: BufReader<UnixStream>,
    first: Event,
    _image: NodeImage,
    _directory: tempfile::TempDir,
}

impl Booted {
    /// Passes on all events. Returns whether every scenario passed.
    async fn listen(mut self, listener: &mut dyn FnMut(&Event)) -> Result<bool, Error> {
        let mut event = self.first.clone();
        let mut passed = true;
        loop {
            listener(&event);
            let awaited = match &event {
                Event::Ended => return Ok(passed),
                Event::Begun { scenario } | Event::Running { scenario, .. } => {
                    format!("the end of {scenario:?}")
                }
                Event::Passed { .. } => "the next scenario".to_owned(),
                Event::Failed { .. } => {
                    passed = false;
                    "the end of the suite".to_owned()
                }
            };
            event = self.next(&awaited, listener).await?;
        }
    }

    /// Returns the next event that ends a wait. `listener` gets those before it, which do not make
    /// the wait any longer.
    async fn next(
        &mut self,
        awaited: &str,
        listener: &mut dyn FnMut(&Event),
    ) -> Result<Event, Error> {
        let ending = ending_event(&mut self.events, listener);
        let event = self.guest.wait_for(awaited, EVENT, ending).await??;
        event.ok_or_else(|| Error::Ended {
            program: "the node",
            status: "the end of its report".to_owned(),
            awaited: awaited.to_owned(),
            report: self.guest.report(),
        })
    }
}

/// Reads events up to the next that ends a wait; none at the end of the report. `listener` gets
/// those before it.
async fn ending_event(
    events: &mut (impl AsyncBufRead + Unpin),
    listener: &mut dyn FnMut(&Event),
) -> Result<Option<Event>, Error> {
    loop {
        let mut line = String::new();
        let read = events.read_line(&mut line).await;
        if read.map_err(Error::file("read", "the report of the node"))? == 0 {
            return Ok(None);
        }
        let event = serde_json::from_str(&line).map_err(|error| Error::File {
            action: "parse a line of",
            path: "the report of the node".into(),
            source: error.into(),
        })?;
        if !matches!(event, Event::Running { .. }) {
            return Ok(Some(event));
        }
        listener(&event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn scenario_that_still_runs_does_not_end_the_wait_for_its_end() {
        let running = |milliseconds| Event::Running {
            scenario: "a pod starts".to_owned(),
            milliseconds,
            journal: "kata: reading guest console\n".to_owned(),
        };
        let passed = Event::Passed { scenario: "a pod starts".to_owned(), milliseconds: 3 };
        let sent = [running(1), running(2), passed.clone()];
        let lines = sent.iter().map(|event| serde_json::to_string(event).unwrap() + "\n");
        let report = lines.collect::<String>();
        let (mut report, mut heard) = (report.as_bytes(), Vec::new());
        let mut listener = |event: &Event| heard.push(event.clone());
        assert_eq!(ending_event(&mut report, &mut listener).await.unwrap(), Some(passed));
        assert_eq!(ending_event(&mut report, &mut listener).await.unwrap(), None);
        assert_eq!(heard, sent[..2]);
    }
}
