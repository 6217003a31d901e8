//! Inspect: the present state of attachments. Changes nothing.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    BlockVolume, audit,
    operation::{Operation, Taken},
    policy, reply,
    request::{self, Detachment},
};
use crate::{
    agent::Agent,
    api::block_volume as wire,
    error::Result,
    namespace::Target,
    volume::{self, Failed, InspectJob, Inspected, Stages},
};

/// How long holders are searched: the request has no time-out of its own.
const LONGEST_SCAN: Duration = Duration::from_secs(2);

pub(super) struct Inspect {
    subjects: Vec<InspectJob>,
    holders: bool,
}

impl Operation for Inspect {
    const NAME: &'static str = "inspect";
    type Request = wire::InspectRequest;
    type Response = wire::InspectResponse;
    type Subject = Vec<InspectJob>;
    type Output = Vec<Inspected>;

    async fn prepare<A: Agent>(
        service: &BlockVolume<A>,
        request: &wire::InspectRequest,
    ) -> Result<Inspect> {
        let detachments = request::detachments(&request.attachments)?;
        service.agent.authorize(policy::INSPECT, &policy::inspect(&detachments)).await?;
        let mut subjects = Vec::with_capacity(detachments.len());
        let mut known: HashMap<String, Target> = HashMap::new();
        for Detachment { attachment, outcome, .. } in detachments {
            let id = &attachment.container_id;
            let container = match known.get(id) {
                Some(target) => Ok(target.clone()),
                None => service.target_or_why(id).await,
            };
            if let Ok(target) = &container {
                known.insert(id.clone(), target.clone());
            }
            subjects.push(InspectJob { attachment, outcome, container });
        }
        Ok(Inspect { subjects, holders: request.holders })
    }

    fn run(
        self,
        began: Instant,
        _: &mut Stages,
    ) -> (Vec<InspectJob>, Result<Vec<Inspected>, Failed>) {
        let result = volume::inspect(&self.subjects, self.holders, began + LONGEST_SCAN)
            .map_err(Failed::from);
        (self.subjects, result)
    }

    fn reply(result: Result<&Vec<Inspected>, &Failed>, _: &Taken) -> wire::InspectResponse {
        reply::inspect(result.map(Vec::as_slice))
    }

    fn describe(subjects: &Vec<InspectJob>, _: Option<&Vec<Inspected>>) -> String {
        audit::volumes(subjects.iter().map(|subject| &subject.attachment))
    }

    fn describe_request(request: &wire::InspectRequest) -> String {
        audit::requested(request.attachments.iter().filter_map(|item| item.attachment.as_ref()))
    }
}
