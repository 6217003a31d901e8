//! The guest: the plugin in its agent, how its kernel finds disks, and how each container would get
//! a device.

use block_volume_api::{
    API_LEVEL, Without,
    block_volume::{ContainerState, FilterMode, NodeWay, ProbeResponse, Reason},
};

use super::policy;
use crate::{
    Deadline, Error,
    kata::{
        agent::{self, Agent},
        agent_address,
        sandbox::Sandbox,
    },
    ops::guest_kernel,
    output::findings::Finding,
    sanitize::sanitize,
};

/// A device path to probe, because the reply describes the container.
const USUAL_PATH: &str = "/dev/xvda";
/// The name of a container's finding.
const NAME: &str = "container";
/// The name of a finding about the guest's kernel.
const KERNEL: &str = "guest_kernel";

/// Checks the guest, and `container` or every container that the runtime lists.
pub(super) async fn check(
    sandbox: &Sandbox,
    container: Option<&str>,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
) {
    let (agent, probe) = match reach(sandbox, deadline, checks).await {
        Ok(reached) => reached,
        Err(e) => return checks.push(policy::problem("plugin", &e, sandbox)),
    };
    let capabilities = probe
        .capabilities
        .iter()
        .map(|capability| sanitize(capability))
        .collect::<Vec<_>>()
        .join(", ");
    let version = sanitize(&probe.plugin_version);
    checks.push(Finding::ok("plugin", format!("{version}, API level {API_LEVEL}: {capabilities}")));
    checks.push(match agent::can_mount(&probe) {
        true => Finding::ok("mounts", "the plugin can mount file systems (--mount-path)"),
        false => Finding::warning(
            "mounts",
            "the plugin cannot mount file systems: a container can get devices alone",
            &["put this version's agent-plugin into the agent"],
        ),
    });
    checks.push(match probe.scsi_hosts.len() {
        0 => Finding::problem("scsi_hosts", &Error::NoController),
        count => Finding::ok("scsi_hosts", format!("virtio-scsi hosts in the guest: {count}")),
    });
    checks.push(Finding::ok(
        "scan_mode",
        match probe.scan_mode.as_str() {
            "none" | "manual" => {
                format!("{}: only the plugin's own scan finds disks", probe.scan_mode)
            }
            mode => format!("{}: the guest's kernel finds disks by itself, too", sanitize(mode)),
        },
    ));
    check_kernel(&probe, checks);
    let containers = match container {
        Some(prefix) => sandbox.container(prefix, &[]).map(|id| vec![id]),
        None => sandbox.containers(),
    };
    match containers {
        Ok(ids) if ids.is_empty() => checks.push(Finding::warning(
            "containers",
            "the runtime lists none on this host",
            &["name one by its full ID with --container"],
        )),
        Ok(ids) => {
            for id in ids {
                let checked = check_container(sandbox, &agent, &id, deadline).await;
                checks.push(checked.of_container(&id));
            }
        }
        Err(e) => checks.push(Finding::problem("containers", &e)),
    }
}

/// One finding for each missing capability, or one that nothing is missing.
fn check_kernel(probe: &ProbeResponse, checks: &mut Vec<Finding>) {
    let Some(kernel) = probe.kernel.as_ref() else {
        return checks.push(Finding::warning(
            KERNEL,
            "not known: the plugin in the guest does not report what its kernel lacks",
            &["put this version's agent-plugin into the agent"],
        ));
    };
    let before = checks.len();
    checks.extend(guest_kernel::missing(kernel).map(|missing| {
        let (message, remedy) = (missing.message(), missing.remedy());
        let finding = match (missing.error(), missing.known) {
            (Some(error), _) => Finding::problem(KERNEL, &error).with_remedy(&[&remedy]),
            (None, Some(known)) if known.without == Without::Slower => Finding::ok(KERNEL, message),
            (None, _) => Finding::warning(KERNEL, message, &[&remedy]),
        };
        finding.of_capability(&missing.name)
    }));
    if checks.len() == before {
        let message = format!("{}: has all that volumes need", sanitize(&kernel.release));
        checks.push(Finding::ok(KERNEL, message));
    }
}

async fn reach(
    sandbox: &Sandbox,
    deadline: Deadline,
    checks: &mut Vec<Finding>,
) -> Result<(Agent, ProbeResponse), Error> {
    let address = sandbox.agent_address(deadline).await?;
    let dialed = agent_address::dial(&address, deadline).await;
    let agent = Agent::new(dialed.map_err(|e| sandbox.or_starting(e))?);
    checks.push(Finding::ok("agent", address.to_string()));
    let probe = agent.probe("", Vec::new(), Vec::new(), deadline).await?;
    Ok((agent, probe))
}

async fn check_container(
    sandbox: &Sandbox,
    agent: &Agent,
    id: &str,
    deadline: Deadline,
) -> Finding {
    match agent.probe(id, vec![USUAL_PATH.to_owned()], Vec::new(), deadline).await {
        Ok(probe) => match probe.container.as_ref() {
            Some(state) => describe(state),
            None => {
                let what = "it has no state of the container".to_owned();
                Finding::problem(NAME, &Error::AgentReply { method: "Probe", what })
            }
        },
        // One container of many may have ended; that does not affect the others.
        Err(e @ Error::Guest { reason: Reason::REASON_CONTAINER_NOT_RUNNING, .. }) => {
            Finding::warning(NAME, e.message(), &[])
        }
        Err(e) => policy::problem(NAME, &e, sandbox),
    }
}

fn describe(state: &ContainerState) -> Finding {
    let namespace = if state.user_namespace {
        "in its own user namespace"
    } else {
        "without its own user namespace"
    };
    let node = state.paths.first().map(|path| path.way.enum_value_or_default()).unwrap_or_default();
    let node = match node {
        NodeWay::NODE_WAY_MKNOD => "device nodes in /dev by mknod",
        NodeWay::NODE_WAY_BIND => "device nodes in /dev by a bind mount",
        NodeWay::NODE_WAY_UNSPECIFIED | NodeWay::NODE_WAY_MOUNT => {
            let message = format!("{namespace}; the guest cannot make a device node in its /dev");
            let error = Error::guest(Reason::REASON_UNSUPPORTED, message);
            return Finding::problem(NAME, &error);
        }
    };
    let Some(filter) = state.filter.as_ref() else {
        let what = "it has no device filter of the container".to_owned();
        return Finding::problem(NAME, &Error::AgentReply { method: "Probe", what });
    };
    if !filter.refused.is_empty() {
        let message = format!("its device filter cannot be changed: {}", filter.refused);
        let error = Error::guest(Reason::REASON_UNSUPPORTED, message);
        return Finding::problem(NAME, &error);
    }
    let filtered = |by: String| {
        let message =
            format!("{namespace}; {node}; device filter: {by}: it can open only its own volumes");
        Finding::ok(NAME, message)
    };
    match filter.mode.enum_value_or_default() {
        FilterMode::FILTER_MODE_V1 => filtered("v1 (allow-list)".to_owned()),
        FilterMode::FILTER_MODE_BPF => {
            filtered(format!("bpf (programs: {})", filter.programs.len()))
        }
        FilterMode::FILTER_MODE_NONE => Finding::warning(
            NAME,
            format!(
                "{namespace}; {node}; device filter: none: with CAP_MKNOD it can create a device node for every volume of the sandbox and open it"
            ),
            &[
                "drop CAP_MKNOD in every container of the pod (securityContext.capabilities.drop: [\"MKNOD\"]),",
                "or plug volumes only into sandboxes whose containers may access each other's volumes",
            ],
        ),
        FilterMode::FILTER_MODE_UNSPECIFIED => {
            let what = "it has no device filter mode".to_owned();
            Finding::problem(NAME, &Error::AgentReply { method: "Probe", what })
        }
    }
}
