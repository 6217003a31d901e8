//! Detach: removes volumes from containers, and their disks from the guest.

use std::time::{Duration, Instant};

use super::{
    BlockVolume, audit,
    operation::{Operation, Taken},
    policy, reply,
    request::{self, Detachment},
};
use crate::{
    agent::{Agent, ContainerError},
    api::block_volume as wire,
    error::{Error, Result},
    holder::Holder,
    volume::{self, CancelOnDrop, DetachJob, DetachPolicy, Detached, Failed, Stages, Ticket},
};

pub(super) struct Detach {
    jobs: Vec<DetachJob>,
    busy: DetachPolicy,
    ticket: Ticket,
    timeout: Duration,
}

impl Operation for Detach {
    const NAME: &'static str = "detach";
    type Request = wire::DetachRequest;
    type Response = wire::DetachResponse;
    type Subject = Vec<DetachJob>;
    type Output = (Vec<Detached>, Vec<Holder>);

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
        // The queues are joined before the containers are looked up, so that an attach in one of
        // them is cancelled as early as possible.
        let serials = request::serials(detachments.iter().map(|item| &item.attachment));
        let ticket = service.queues.detach(serials, busy.waits())?;
        let mut jobs = Vec::with_capacity(detachments.len());
        for Detachment { attachment, outcome, keep_disk, keep_right } in detachments {
            let target = match service.target(&attachment.container_id).await {
                Ok(target) => Some(target),
                // Its file system and its device filter are gone with it, or never existed.
                Err(Error::Container {
                    source:
                        ContainerError::Unknown | ContainerError::Created | ContainerError::Stopped,
                    ..
                }) => None,
                Err(error) => return Err(error),
            };
            jobs.push(DetachJob { attachment, outcome, keep_disk, keep_right, target });
        }
        Ok(Detach { jobs, busy, ticket, timeout })
    }

    fn run(
        mut self,
        began: Instant,
        stages: &mut Stages,
    ) -> (Vec<DetachJob>, Result<Self::Output, Failed>) {
        let deadline = began + self.timeout;
        let result = volume::detach(&mut self.jobs, self.busy, &self.ticket, deadline, stages);
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
        self.busy.waits().then(|| self.ticket.cancel_on_drop())
    }
}
