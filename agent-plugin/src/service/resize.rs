//! Resize: makes the guest's kernel read the capacity of disks again.

use std::time::{Duration, Instant};

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
    error::Result,
    volume::{self, Announced, Attachment, Failed, Resized, Stages},
};

pub(super) struct Resize {
    attachments: Vec<Attachment>,
    announced: Announced,
    timeout: Duration,
}

impl Operation for Resize {
    const NAME: &'static str = "resize";
    type Request = wire::ResizeRequest;
    type Response = wire::ResizeResponse;
    type Subject = Vec<Attachment>;
    type Output = Vec<Resized>;

    async fn prepare<A: Agent>(
        service: &BlockVolume<A>,
        request: &wire::ResizeRequest,
    ) -> Result<Resize> {
        let timeout = request::timeout(request.timeout_ms)?;
        let attachments = request::attachments(&request.attachments)?;
        service.agent.authorize(policy::RESIZE, &policy::attachments(&attachments)).await?;
        // In the queues as an attach is: a detach of one of these volumes ends the wait. It joins
        // them when the disks were found.
        let announced = service.queues.announce(request::serials(&attachments));
        Ok(Resize { attachments, announced, timeout })
    }

    fn demand(request: &wire::ResizeRequest) -> Demand {
        let volumes = request.attachments.len();
        Demand { volumes, timeout_ms: request.timeout_ms, is_patient: false }
    }

    fn run(
        self,
        began: Instant,
        stages: &mut Stages,
    ) -> (Vec<Attachment>, Result<Vec<Resized>, Failed>) {
        let deadline = began + self.timeout;
        let result = volume::resize(&self.attachments, self.announced, deadline, stages);
        (self.attachments, result)
    }

    fn reply(result: Result<&Vec<Resized>, &Failed>, taken: &Taken) -> wire::ResizeResponse {
        reply::resize(result.map(Vec::as_slice), taken)
    }

    fn describe(attachments: &Vec<Attachment>, _: Option<&Vec<Resized>>) -> String {
        audit::volumes(attachments.iter())
    }

    fn describe_request(request: &wire::ResizeRequest) -> String {
        audit::requested(request.attachments.iter())
    }
}
