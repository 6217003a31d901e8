//! Attach: makes volumes usable in containers.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    BlockVolume, audit,
    operation::{Operation, Taken},
    policy, reply, request,
};
use crate::{
    agent::Agent,
    api::block_volume as wire,
    error::Result,
    namespace::Target,
    volume::{self, AttachJob, Attached, Failed, Stages, Ticket},
};

pub(super) struct Attach {
    jobs: Vec<AttachJob>,
    ticket: Ticket,
    timeout: Duration,
}

impl Operation for Attach {
    const NAME: &'static str = "attach";
    type Request = wire::AttachRequest;
    type Response = wire::AttachResponse;
    type Subject = Vec<AttachJob>;
    type Output = Vec<Attached>;

    async fn prepare<A: Agent>(
        service: &BlockVolume<A>,
        request: &wire::AttachRequest,
    ) -> Result<Attach> {
        let timeout = request::timeout(request.timeout_ms)?;
        let attachments = request::attachments(&request.attachments)?;
        // The queues are joined before anything is awaited, so that a detach that arrives from now
        // on sees this attach.
        let ticket = service.queues.attach(request::serials(&attachments))?;
        service.agent.authorize(policy::ATTACH, &policy::attachments(&attachments)).await?;
        let mut targets: HashMap<String, Target> = HashMap::new();
        let mut jobs = Vec::with_capacity(attachments.len());
        for attachment in attachments {
            let target = match targets.get(&attachment.container_id) {
                Some(target) => target.clone(),
                None => service.target(&attachment.container_id).await?,
            };
            targets.insert(attachment.container_id.clone(), target.clone());
            jobs.push(AttachJob { attachment, target });
        }
        Ok(Attach { jobs, ticket, timeout })
    }

    fn run(
        self,
        began: Instant,
        stages: &mut Stages,
    ) -> (Vec<AttachJob>, Result<Vec<Attached>, Failed>) {
        let result = volume::attach(&self.jobs, &self.ticket, began + self.timeout, stages);
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
