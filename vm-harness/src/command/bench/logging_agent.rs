//! What an agent's own log costs a hot-plug. kata-agent writes a line for each device event of the
//! kernel to the console, and a hot-plug causes ten events: the disk is found later. The same
//! rounds run in a VM whose agent does so, and alternate with those of the agent that does not.

use vm_harness::{Error, Machine};

use super::{
    row::{Row, Series},
    subject::{Calls, Subject},
};

/// A sandbox whose agent logs each device event, and its hot-plugs.
pub(super) struct LoggingAgent {
    subject: Subject,
    plugs: Calls,
}

impl LoggingAgent {
    /// Boots `machine` with such an agent.
    pub(super) async fn boot(machine: &Machine) -> Result<Self, Error> {
        let mut machine = machine.clone();
        machine.kernel_parameters.push("agent.log_uevents=on".to_owned());
        Ok(Self { subject: Subject::boot(&machine).await?, plugs: Calls::default() })
    }

    /// Plugs and unplugs once.
    pub(super) async fn round(&mut self) {
        let container = &self.subject.container;
        self.plugs.add(self.subject.plug(container).await);
        self.subject.unplug(container).await;
    }

    /// Forgets what was measured so far.
    pub(super) fn forget(&mut self) {
        self.plugs = Calls::default();
    }

    /// Returns the rows beside the hot-plugs with an agent that does not log.
    pub(super) fn rows(&self, quiet: &Calls) -> Vec<Row> {
        let row = |what: &str, logging, quiet| {
            Row::ratio(
                format!("{what}, an agent that logs device events / one that does not"),
                Series::times("logs", logging),
                Series::times("does not", quiet),
            )
        };
        vec![
            row("hot-plug, the whole process", self.plugs.whole.clone(), quiet.whole.clone()),
            row("`guest_scan`", self.plugs.stage("guest_scan"), quiet.stage("guest_scan")),
        ]
    }
}
