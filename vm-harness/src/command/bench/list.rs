//! `list` of very many volumes, beside the time that QEMU itself takes for the queries.

use std::{ffi::OsStr, time::Instant};

use block_volume_qmp::Deadline;
use serde_json::Value;
use vm_harness::{EcrRuntime, Error, QmpProxy};

use super::{
    floor::LIMIT,
    row::{Goal, Row, Series},
    samples::Samples,
    subject::Subject,
};

/// Milliseconds beside QEMU's own time.
const GOAL: Goal = Goal::AtMost(100.0);

/// The times of `list`.
pub(super) struct List {
    /// How often it is measured in each pass.
    runs: usize,
    whole: Samples,
    queries: Samples,
    names: Vec<String>,
}

impl List {
    pub(super) fn new(runs: usize) -> Self {
        let (whole, queries) = (Samples::default(), Samples::default());
        Self { runs, whole, queries, names: Vec::new() }
    }

    /// Measures while the volumes are attached.
    pub(super) async fn measure(&mut self, subject: &Subject) -> Result<(), Error> {
        let sandbox = &subject.sandbox;
        let verb = ["block-volume", "list", "--output", "json", "--sandbox", sandbox.id()];
        let list = sandbox.ecr_runtime().args(verb);
        let queries = record(subject, list.clone()).await?;
        self.names = queries.iter().map(|(name, _)| name.clone()).collect();
        let mut monitor = sandbox.monitor().await?;
        for _ in 0..self.runs {
            self.whole.add(subject.call(&list).await.whole);
            monitor.set_deadline(Deadline::after(LIMIT));
            let start = Instant::now();
            for (name, arguments) in &queries {
                let answer = monitor.execute(name, arguments.clone()).await;
                answer.map_err(|error| Error::Monitor(error.to_string()))?;
            }
            self.queries.add(start.elapsed());
        }
        Ok(())
    }

    pub(super) fn row(&self, volumes: usize) -> Row {
        Row::difference(
            format!(
                "list of {volumes} volumes, beside QEMU's own time ({})",
                self.names.join(", ")
            ),
            Series::times("list", self.whole.clone()),
            Series::times("queries", self.queries.clone()),
        )
        .goal(GOAL)
    }
}

/// Returns the queries that `list` sends, with their arguments.
async fn record(subject: &Subject, list: EcrRuntime) -> Result<Vec<(String, Value)>, Error> {
    let proxy = QmpProxy::start(&subject.sandbox.qmp_socket())?;
    subject.call(&list.args([OsStr::new("--qmp"), proxy.path().as_os_str()])).await;
    subject.restore_state()?;
    let commands = proxy.lines().into_iter().filter_map(|line| {
        let name = line["line"]["execute"].as_str()?.to_owned();
        let arguments = &line["line"]["arguments"];
        let none = || Value::Object(serde_json::Map::new());
        Some((name, if arguments.is_object() { arguments.clone() } else { none() }))
    });
    Ok(commands.filter(|(name, _)| name != "qmp_capabilities").collect())
}
