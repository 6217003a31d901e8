//! The scenarios with the pods of one kind, in their order, as far as they were chosen.

use super::{
    super::scenario::{Scenario, Selection},
    runner::{Failed, Runner},
    scenarios,
    workload::Workload,
};
use crate::Engine;

/// Scenarios with pods of one kind.
pub(super) struct Sequence<'a> {
    pub(super) runner: &'a mut Runner,
    pub(super) selection: &'a Selection,
    /// The runtime class, with which each line of the report begins.
    pub(super) class: Option<&'a str>,
}

impl Sequence<'_> {
    /// Runs what was chosen. `start` makes a pod of this name. Returns the connection to the
    /// engine, which may be another one now.
    pub(super) async fn run(
        &mut self,
        mut engine: Engine,
        start: impl AsyncFn(&Engine, &str) -> Workload,
    ) -> Result<Engine, Failed> {
        let volume = scenarios::volume();
        let started = self.scenario(Scenario::Start, start(&engine, "db-0")).await?;
        if let Some(mut workload) = started {
            let refused = scenarios::plug_is_refused(&workload, &volume);
            self.scenario(Scenario::Refuse, refused).await?;
            let plugged = async {
                scenarios::check_passes(&workload).await;
                scenarios::plug(&workload, &volume).await;
                scenarios::write(&workload, &volume).await;
                scenarios::listed_by_name(&workload).await;
            };
            self.scenario(Scenario::Plug, plugged).await?;
            self.scenario(Scenario::Audit, scenarios::audited(&workload, &volume)).await?;
            self.scenario(Scenario::Unplug, scenarios::unplug(&workload, &volume)).await?;
            let restarted = scenarios::restart_containerd(&mut workload, &volume);
            if let Some(new) = self.scenario(Scenario::RestartContainerd, restarted).await? {
                engine = new;
            }
            let stopped = scenarios::stop_container(&mut workload, &volume);
            self.scenario(Scenario::StopContainer, stopped).await?;
            if self.selection.has(Scenario::StopPod) {
                let stopped = scenarios::stop_pod(workload, &volume);
                self.scenario(Scenario::StopPod, stopped).await?;
            } else {
                let stopped = scenarios::stop(workload, &volume);
                self.runner.scenario(&self.line("the pod is stopped"), stopped).await?;
            }
        }
        let killed = async {
            let workload = start(&engine, "db-1").await;
            scenarios::kill_shim(workload, &volume).await;
        };
        self.scenario(Scenario::KillShim, killed).await?;
        Ok(engine)
    }

    /// Runs a scenario if it was chosen.
    async fn scenario<T>(
        &mut self,
        scenario: Scenario,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, Failed> {
        if !self.selection.has(scenario) {
            return Ok(None);
        }
        self.runner.scenario(&self.line(scenario.title()), work).await.map(Some)
    }

    fn line(&self, what: &str) -> String {
        self.class.map_or_else(|| what.to_owned(), |class| format!("{class}: {what}"))
    }
}
