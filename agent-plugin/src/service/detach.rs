//! Detach: removes volumes from containers, and their disks from the guest.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    BlockVolume,
    at_work::Demand,
    audit,
    operation::{Operation, Taken},
    policy, reply,
    request::{self, Detachment},
};
use crate::{
    agent::{Agent, ContainerError},
    api::block_volume as wire,
    error::{Error, Result},
    volume::{
        self, Announced, CancelOnDrop, DetachJob, DetachOutput, DetachPolicy, Failed, LeftBehind,
        Stages, Ticket,
    },
};

pub(super) struct Detach {
    jobs: Vec<DetachJob>,
    busy: DetachPolicy,
    /// Once it has joined the queues.
    ticket: Option<Ticket>,
    timeout: Duration,
    /// What stays in containers that the agent cannot reach.
    unreached: Vec<LeftBehind>,
}

impl Operation for Detach {
    const NAME: &'static str = "detach";
    type Request = wire::DetachRequest;
    type Response = wire::DetachResponse;
    type Subject = Vec<DetachJob>;
    type Output = DetachOutput;

    async fn prepare<A: Agent>(
        service: &BlockVolume<A>,
        request: &wire::DetachRequest,
    ) -> Result<Detach> {
        let timeout = request::timeout(request.timeout_ms)?;
        let wait = request::wait(request.wait_ms, timeout)?;
        let busy = DetachPolicy { force: request.force, wait };
        let detachments = request::detachments(&request.detachments)?;
        let question = policy::detach(&detachments, request.force);
        service.agent.authorize(policy::DETACH, &question).await?;
        let mut known = HashMap::new();
        let (mut jobs, mut unreached) = (Vec::with_capacity(detachments.len()), Vec::new());
        for Detachment { attachment, outcome, keep_disk, keep_right } in detachments {
            let id = &attachment.container_id;
            let target = match service.target_of(id, &mut known).await {
                Ok(target) => Some(target),
                // Its file system and its device filter are gone with it, or never existed.
                Err(Error::Container {
                    source: ContainerError::Unknown | ContainerError::Created,
                    ..
                }) => None,
                Err(Error::Container { source: ContainerError::Stopped, .. }) => {
                    service.remains_of(id, &mut known).await
                }
                Err(error @ Error::Container { source: ContainerError::Unreachable(_), .. })
                    if request.force =>
                {
                    unreached.push(LeftBehind {
                        serial: attachment.serial.clone(),
                        path: attachment.path.as_str().to_owned(),
                        reason: format!("its device node and its right: {}", error.message()),
                    });
                    None
                }
                Err(error) => return Err(error),
            };
            jobs.push(DetachJob { attachment, outcome, keep_disk, keep_right, target });
        }
        Ok(Detach { jobs, busy, ticket: None, timeout, unreached })
    }

    fn demand(request: &wire::DetachRequest) -> Demand {
        let (volumes, is_patient) = (request.detachments.len(), request.wait_ms > 0);
        Demand { volumes, is_patient, timeout_ms: request.timeout_ms }
    }

    fn join<A: Agent>(self, service: &BlockVolume<A>, _: Option<Announced>) -> Result<Detach> {
        let serials = request::serials(self.jobs.iter().map(|job| &job.attachment));
        let ticket = service.queues.detach(serials, self.busy.waits())?;
        Ok(Detach { ticket: Some(ticket), ..self })
    }

    fn run(
        mut self,
        began: Instant,
        stages: &mut Stages,
    ) -> (Vec<DetachJob>, Result<Self::Output, Failed>) {
        let deadline = began + self.timeout;
        let mut result = match &self.ticket {
            Some(ticket) => volume::detach(&mut self.jobs, self.busy, ticket, deadline, stages),
            None => Err(Error::Panicked.into()),
        };
        if let Ok(output) = &mut result {
            output.left_behind.append(&mut self.unreached);
            for LeftBehind { serial, path, reason } in &output.left_behind {
                let reason = reason.escape_debug();
                tracing::warn!("left behind of volume {serial} at {path:?}: {reason}");
            }
        }
        (self.jobs, result)
    }

    fn reply(result: Result<&Self::Output, &Failed>, taken: &Taken) -> wire::DetachResponse {
        reply::detach(result, taken)
    }

    fn describe(jobs: &Vec<DetachJob>, _: Option<&Self::Output>) -> String {
        audit::volumes(jobs.iter().map(|job| &job.attachment))
    }

    fn describe_request(request: &wire::DetachRequest) -> String {
        audit::requested(request.detachments.iter().filter_map(|item| item.attachment.as_ref()))
    }

    /// A wait for holders is of use to the caller alone.
    fn cancel_on_drop(&self) -> Option<CancelOnDrop> {
        self.ticket.as_ref().filter(|_| self.busy.waits()).map(Ticket::cancel_on_drop)
    }
}
