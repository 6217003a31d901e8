//! Probe: what the guest can do, and what exists at paths of a container. Changes nothing.

use std::time::Instant;

use super::{
    BlockVolume, audit,
    operation::{Operation, Taken},
    policy, reply, request,
};
use crate::{
    agent::Agent,
    api::block_volume as wire,
    cgroup::Filter,
    device_node::NodePath,
    error::Result,
    namespace::Target,
    volume::{self, Failed, Guest, Stages},
};

pub(super) struct Probe {
    target: Option<Target>,
    paths: Vec<NodePath>,
}

impl Operation for Probe {
    const NAME: &'static str = "probe";
    type Request = wire::ProbeRequest;
    type Response = wire::ProbeResponse;
    type Subject = Option<Target>;
    type Output = (Guest, Option<wire::ContainerState>);

    async fn prepare<A: Agent>(
        service: &BlockVolume<A>,
        request: &wire::ProbeRequest,
    ) -> Result<Probe> {
        let paths = request::paths(&request.paths)?;
        let container = match request.container_id.as_str() {
            "" => None,
            id => Some(request::container_id("container_id", id)?),
        };
        let question = policy::probe(&request.container_id, &paths);
        service.agent.authorize(policy::PROBE, &question).await?;
        let target = match container {
            Some(id) => Some(service.target(&id).await?),
            None => None,
        };
        Ok(Probe { target, paths })
    }

    fn run(self, _: Instant, _: &mut Stages) -> (Option<Target>, Result<Self::Output, Failed>) {
        let result = probe(self.target.as_ref(), &self.paths).map_err(Failed::from);
        (self.target, result)
    }

    fn reply(result: Result<&Self::Output, &Failed>, _: &Taken) -> wire::ProbeResponse {
        reply::probe(result)
    }

    fn describe(target: &Option<Target>, _: Option<&Self::Output>) -> String {
        target.as_ref().map(|target| target.id.to_string()).unwrap_or_default()
    }

    fn describe_request(request: &wire::ProbeRequest) -> String {
        audit::escaped(&request.container_id)
    }
}

fn probe(
    target: Option<&Target>,
    paths: &[NodePath],
) -> Result<(Guest, Option<wire::ContainerState>)> {
    let guest = volume::probe()?;
    let Some(target) = target else { return Ok((guest, None)) };
    // As an attach does.
    target.check_inside()?;
    let filter = Filter::of(target)?;
    let container = wire::ContainerState {
        user_namespace: target.container.user_namespace.is_some(),
        filter: Some(reply::filter_state(&filter)).into(),
        paths: volume::paths(target, paths)?.into_iter().map(reply::path_state).collect(),
        status: reply::container_status(volume::ContainerStatus::Running).into(),
        ..Default::default()
    };
    Ok((guest, Some(container)))
}
