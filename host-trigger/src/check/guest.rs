//! The guest: its agent's plugin, how its kernel finds disks, and what each container would get.

use block_volume_api::API_LEVEL;
use block_volume_api::block_volume::{ContainerState, FilterMode, NodeWay, ProbeResponse, Reason};

use crate::{
    Deadline, Error,
    agent::{self, Agent},
    checked::Finding,
    printable::printable,
    sandbox::Place,
};

/// Where a container would get a device, for what it tells of the container.
const USUAL_PATH: &str = "/dev/xvda";

/// Looks at all of it, and at `container` or every one that is known.
pub(super) async fn look(
    place: &Place,
    container: Option<&str>,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
) {
    let (agent, probe) = match reach(place, deadline, checks).await {
        Ok(reached) => reached,
        Err(e) => return checks.push(Finding::problem("plugin", &e)),
    };
    let can = probe
        .capabilities
        .iter()
        .map(|capability| printable(capability))
        .collect::<Vec<_>>()
        .join(", ");
    let version = printable(&probe.plugin_version);
    checks.push(Finding::ok("plugin", format!("{version}, API level {API_LEVEL}: {can}")));
    checks.push(match probe.scsi_hosts.len() {
        0 => Finding::problem("scsi-hosts", &Error::NoController),
        count => Finding::ok("scsi-hosts", format!("{count} of virtio-scsi in the guest")),
    });
    checks.push(Finding::ok(
        "scan-mode",
        match probe.scan_mode.as_str() {
            "none" | "manual" => {
                format!("{}: disks are found by the plugin's own scan alone", probe.scan_mode)
            }
            mode => format!("{}: the guest's kernel finds disks by itself, too", printable(mode)),
        },
    ));
    let containers = match container {
        Some(prefix) => place.container(prefix, &[]).map(|id| vec![id]),
        None => place.containers(),
    };
    match containers {
        Ok(ids) if ids.is_empty() => checks.push(Finding::warning(
            "containers",
            "none is known on this host",
            &["name one by its whole id with --container"],
        )),
        Ok(ids) => {
            for id in ids {
                checks.push(look_at(&agent, &id, deadline).await);
            }
        }
        Err(e) => checks.push(Finding::problem("containers", &e)),
    }
}

async fn reach(
    place: &Place,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
) -> Result<(Agent, ProbeResponse), Error> {
    let address = place.agent_address(deadline).await?;
    let agent = Agent::new(agent::dial(&address, deadline).await?);
    checks.push(Finding::ok("agent", address.to_string()));
    let probe = agent.probe("", Vec::new(), deadline).await?;
    Ok((agent, probe))
}

async fn look_at(agent: &Agent, id: &str, deadline: Deadline) -> Finding {
    let name = format!("container {}", id.chars().take(12).collect::<String>());
    match agent.probe(id, vec![USUAL_PATH.to_owned()], deadline).await {
        Ok(probe) => match probe.container.as_ref() {
            Some(state) => describe(&name, state),
            None => {
                let what = "nothing of the container".to_owned();
                Finding::problem(&name, &Error::AgentAnswer { method: "Probe", what })
            }
        },
        // One of many may have ended; that is no reason against the others.
        Err(e @ Error::Guest { reason: Reason::REASON_CONTAINER_NOT_RUNNING, .. }) => {
            Finding::warning(&name, e.message(), &[])
        }
        Err(e) => Finding::problem(&name, &e),
    }
}

fn describe(name: &str, state: &ContainerState) -> Finding {
    let namespace = if state.user_namespace {
        "in a user namespace of its own"
    } else {
        "in no user namespace of its own"
    };
    let way = state.paths.first().map(|path| path.way.enum_value_or_default()).unwrap_or_default();
    let way = match way {
        NodeWay::NODE_WAY_MKNOD => "devices in /dev by mknod",
        NodeWay::NODE_WAY_BIND => "devices in /dev by a bind mount",
        NodeWay::NODE_WAY_UNSPECIFIED => {
            let message =
                format!("{namespace}; the guest has no way to make a device in /dev of it");
            let error = Error::Guest { reason: Reason::REASON_UNSUPPORTED, message, undone: true };
            return Finding::problem(name, &error);
        }
    };
    let Some(filter) = state.filter.as_ref() else {
        let what = "no device filter of the container".to_owned();
        return Finding::problem(name, &Error::AgentAnswer { method: "Probe", what });
    };
    if !filter.refused.is_empty() {
        let message = format!("its device filter cannot be changed: {}", filter.refused);
        let error = Error::Guest { reason: Reason::REASON_UNSUPPORTED, message, undone: true };
        return Finding::problem(name, &error);
    }
    let filtered = |by: String| {
        let found =
            format!("{namespace}; {way}; device filter: {by}: it can open its own volumes alone");
        Finding::ok(name, found)
    };
    match filter.mode.enum_value_or_default() {
        FilterMode::FILTER_MODE_V1 => filtered("v1 (allow-list)".to_owned()),
        FilterMode::FILTER_MODE_BPF => {
            filtered(format!("bpf (programs: {})", filter.programs.len()))
        }
        FilterMode::FILTER_MODE_NONE => Finding::warning(
            name,
            format!(
                "{namespace}; {way}; device filter: none: with CAP_MKNOD it can open every volume of the sandbox, by a node of its own"
            ),
            &[
                "drop CAP_MKNOD in every container of the pod (securityContext.capabilities.drop: [\"MKNOD\"]),",
                "or plug volumes only into sandboxes whose containers may see each other's",
            ],
        ),
        FilterMode::FILTER_MODE_UNSPECIFIED => {
            let what = "no device filter mode".to_owned();
            Finding::problem(name, &Error::AgentAnswer { method: "Probe", what })
        }
    }
}
