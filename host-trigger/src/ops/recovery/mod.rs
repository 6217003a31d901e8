//! Recovery of volumes: what an interrupted run left of one is completed or rolled back. The plan
//! (`plan`) is decided by what QEMU and the guest have, and carried out here.

use block_volume_api::block_volume::{AttachRequest, Detachment};
use block_volume_qmp::Qmp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{commit, detach::Detach, inspect::VolumeView, session::Guest};
use crate::{
    Deadline, Error,
    diagnostics::StepLog,
    kata::{
        agent::{self, Agent},
        sandbox::Sandbox,
    },
    qemu::{block_node, node_users::NodeUsers, volume_state::Attachment},
    stopwatch::Stopwatch,
    volume_id::reservation_name,
};

mod plan;

pub(crate) use plan::{GuestReport, RecoveryPlan};

/// What is done about a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// An interrupted plug or unplug is completed.
    Completed,
    /// What was done is reverted.
    RolledBack,
    /// The volume is complete and is not touched.
    Kept,
    /// It could not be decided or done.
    Failed,
}

/// The state of a volume afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateAfter {
    /// It is attached.
    Attached,
    /// Nothing is left.
    Gone,
    /// As before, as far as is known.
    Unknown,
}

/// What was done about a volume, its state afterwards, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) action: Action,
    pub(crate) after: StateAfter,
    pub(crate) detail: String,
}

impl Recovered {
    fn new(action: Action, after: StateAfter, detail: impl Into<String>) -> Self {
        Self { action, after, detail: detail.into() }
    }

    pub(crate) fn failed(detail: impl Into<String>) -> Self {
        Self::new(Action::Failed, StateAfter::Unknown, detail)
    }

    pub(crate) fn rolled_back(detail: impl Into<String>) -> Self {
        Self::new(Action::RolledBack, StateAfter::Gone, detail)
    }
}

/// The recovery of the volumes of a sandbox, one after the other.
#[derive(Debug)]
pub(crate) struct Recovery<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) log: StepLog,
    pub(crate) deadline: Deadline,
    pub(crate) qmp: &'a mut Qmp,
    pub(crate) guest: Option<&'a Guest>,
    /// The attachments that were detached.
    pub(crate) detached: Vec<Attachment>,
}

impl Recovery<'_> {
    /// Carries out `plan` for one volume.
    pub(crate) async fn run(&mut self, view: &VolumeView, plan: &RecoveryPlan) -> Recovered {
        let request = view.request.clone();
        let failed = |e: Error| Recovered::failed(e.message());
        match (plan, self.guest, request) {
            (RecoveryPlan::Keep | RecoveryPlan::Leave { .. }, ..) => plan.result(),
            (RecoveryPlan::Detach { .. }, _, request) => match self.detach(view, request).await {
                Ok(()) => plan.result(),
                Err(e) => failed(e),
            },
            (RecoveryPlan::Attach { .. }, Some(guest), Some(request)) => {
                match self.attach(&guest.agent, view, &request).await {
                    Ok(()) => plan.result(),
                    // The guest refuses: then the volume is detached.
                    Err(Error::Guest { message, .. }) => {
                        match self.detach(view, Some(request)).await {
                            Ok(()) => {
                                Recovered::rolled_back(format!("the guest reports: {message}"))
                            }
                            Err(e) => failed(e),
                        }
                    }
                    Err(e) => failed(e),
                }
            }
            (RecoveryPlan::Attach { .. }, ..) => plan.result(),
        }
    }

    /// What [`run`](Self::run) would return, as far as it can be known.
    pub(crate) async fn dry_run(&mut self, view: &VolumeView, plan: &RecoveryPlan) -> Recovered {
        if !matches!(plan, RecoveryPlan::Detach { .. }) {
            return plan.result();
        }
        let users = NodeUsers::read(self.qmp).await.map_err(Error::from);
        match users.and_then(|users| users.check(&view.known.id)) {
            Ok(()) => plan.result(),
            Err(e) => Recovered::failed(e.message()),
        }
    }

    async fn detach(
        &mut self,
        view: &VolumeView,
        mut request: Option<Detachment>,
    ) -> Result<(), Error> {
        if let Some(request) = &mut request {
            // Of several attachments the last one takes the disk along.
            let mut others = view.known.others();
            others.retain(|other| !self.detached.contains(other));
            request.keep_disk = !others.is_empty();
            let container = &request.attachment.container_id;
            request.keep_right = others.iter().any(|other| other.intent.container == *container);
        }
        if request.as_ref().is_none_or(|request| !request.keep_disk) {
            NodeUsers::read(self.qmp).await?.check(&view.known.id)?;
        }
        let mut detach = Detach {
            sandbox: self.sandbox,
            log: self.log,
            deadline: self.deadline,
            watch: &mut Stopwatch::new(),
            qmp: self.qmp,
            id: &view.known.id,
            guest: self.guest,
            is_abandoned: view.known.state.is_abandoned,
            // The disk of an abandoned volume has gone: its holders have nothing to lose.
            force: view.known.state.is_abandoned,
            left_behind: Vec::new(),
        };
        detach.run(request).await?;
        self.detached.extend(view.known.attachment.clone());
        Ok(())
    }

    /// Asks the guest for what it has done already or has lost since, and writes the commit record.
    async fn attach(
        &mut self,
        agent: &Agent,
        view: &VolumeView,
        request: &Detachment,
    ) -> Result<(), Error> {
        let (Some(requested), Some(known)) = (request.attachment.as_ref(), &view.known.attachment)
        else {
            return Err(commit::mismatch("no volume"));
        };
        if known.is_further() {
            // An interrupted unplug may have released the path first.
            let reservation = reservation_name(&known.intent.container, &known.intent.path);
            block_node::reserve_path(self.qmp, &reservation).await?;
        }
        let remaining = self.deadline.remaining();
        let attach = AttachRequest {
            attachments: vec![requested.clone()],
            timeout_ms: agent::timeout_ms(remaining - remaining / 4),
            ..Default::default()
        };
        let mut reply = agent.attach(&attach, self.deadline).await?;
        let attached = match (reply.attached.pop(), reply.attached.len()) {
            (Some(attached), 0) => attached,
            _ => return Err(commit::mismatch("another number of volumes")),
        };
        commit::check(requested, &attached)?;
        let before = known.committed().or(known.commits.first());
        let mut record = commit::record(&view.volume.scsi.controller, requested, &attached);
        if let Some((_, before)) = before {
            record.carry_over(before);
        }
        let carrier = before.map(|(carrier, _)| *carrier);
        commit::replace(self.qmp, known.set, carrier, &record).await
    }
}
