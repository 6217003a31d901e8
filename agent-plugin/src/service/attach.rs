//! Attach: makes volumes usable in containers.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    BlockVolume,
    at_work::Demand,
    audit,
    operation::{Operation, Taken},
    policy, reply, request,
};
use crate::{
    agent::Agent,
    api::block_volume as wire,
    error::{Error, Result},
    volume::{self, Announced, AttachJob, Attached, Failed, Stages, Ticket},
};

pub(super) struct Attach {
    jobs: Vec<AttachJob>,
    /// Once it has joined the queues.
    ticket: Option<Ticket>,
    timeout: Duration,
}

impl Operation for Attach {
    const NAME: &'static str = "attach";
    type Request = wire::AttachRequest;
    type Response = wire::AttachResponse;
    type Subject = Vec<AttachJob>;
    type Output = Vec<Attached>;

    fn announce<A: Agent>(
        service: &BlockVolume<A>,
        request: &wire::AttachRequest,
    ) -> Result<Option<Announced>> {
        let attachments = request::attachments(&request.attachments)?;
        Ok(Some(service.queues.announce(request::serials(&attachments))))
    }

    fn demand(request: &wire::AttachRequest) -> Demand {
        let volumes = request.attachments.len();
        Demand { volumes, timeout_ms: request.timeout_ms, is_patient: false }
    }

    async fn prepare<A: Agent>(
        service: &BlockVolume<A>,
        request: &wire::AttachRequest,
    ) -> Result<Attach> {
        let timeout = request::timeout(request.timeout_ms)?;
        let attachments = request::attachments(&request.attachments)?;
        service.agent.authorize(policy::ATTACH, &policy::attachments(&attachments)).await?;
        let mut known = HashMap::new();
        let mut jobs = Vec::with_capacity(attachments.len());
        for attachment in attachments {
            let target = service.target_of(&attachment.container_id, &mut known).await?;
            jobs.push(AttachJob { attachment, target });
        }
        Ok(Attach { jobs, ticket: None, timeout })
    }

    fn join<A: Agent>(self, _: &BlockVolume<A>, announced: Option<Announced>) -> Result<Attach> {
        let ticket = announced.map(Announced::join).transpose()?;
        Ok(Attach { ticket, ..self })
    }

    fn run(
        self,
        began: Instant,
        stages: &mut Stages,
    ) -> (Vec<AttachJob>, Result<Vec<Attached>, Failed>) {
        let result = match &self.ticket {
            Some(ticket) => volume::attach(&self.jobs, ticket, began + self.timeout, stages),
            None => Err(Error::Panicked.into()),
        };
        (self.jobs, result)
    }

    fn reply(result: Result<&Vec<Attached>, &Failed>, taken: &Taken) -> wire::AttachResponse {
        reply::attach(result.map(Vec::as_slice), taken)
    }

    fn describe(jobs: &Vec<AttachJob>, attached: Option<&Vec<Attached>>) -> String {
        audit::attached(jobs, attached.map(Vec::as_slice).unwrap_or_default())
    }

    fn describe_request(request: &wire::AttachRequest) -> String {
        audit::requested(request.attachments.iter())
    }
}
