//! The preflight: everything that can be known before anything is changed. The agent, QEMU and the
//! source are asked at the same time, because each takes a while to reply and none needs the
//! others: the plug then takes hardly longer than its three changes in QEMU and the guest's own
//! work.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::{
    FilterMode, NodeWay, PathState, PathUse, ProbeResponse, Reason,
};
use block_volume_qmp::Qmp;

use super::HotPlug;
use crate::{
    Deadline, Error,
    host::source::Source,
    kata::{
        agent::Agent,
        agent_address::{self, AgentAddress},
        sandbox::Sandbox,
    },
    ops::session::PROBE_TIMEOUT,
    qemu::{abandoned, controller::Controller, inventory::Inventory},
    stopwatch::Stopwatch,
};

/// What was found.
#[derive(Debug)]
pub(super) struct Preflight {
    pub(super) address: AgentAddress,
    pub(super) agent: Agent,
    pub(super) probe: ProbeResponse,
    pub(super) qmp: Qmp,
    pub(super) controller: Controller,
    /// QEMU's inventory, which takes longer the more volumes there are: read only if QEMU may have
    /// something of these volumes.
    pub(super) inventory: Option<Inventory>,
    pub(super) sources: Vec<Source>,
}

/// Asks all three. The first error ends it.
pub(super) async fn run(
    sandbox: &Sandbox,
    container: &str,
    verb: &HotPlug,
    deadline: Deadline,
    watch: &mut Stopwatch,
) -> Result<Preflight, Error> {
    let guest = connect_agent(sandbox, container, verb, deadline);
    let host = async {
        let start = Instant::now();
        let mut qmp = sandbox.connect_qmp(deadline).await?;
        let connected = start.elapsed();
        let controller = Inventory::find_controller(&mut qmp, verb.controller.as_deref()).await?;
        let has_abandoned = abandoned::exist(&mut qmp).await?;
        let stages = [("qmp_connect", connected), ("qmp_query", start.elapsed() - connected)];
        Ok(((qmp, has_abandoned), controller, stages))
    };
    // Polled first: its thread works while the others are sent their requests.
    let sources = async {
        let start = Instant::now();
        let sources = Source::open_all(&verb.block_volume, verb.read_only, deadline).await?;
        Ok((sources, start.elapsed()))
    };
    let ((sources, opened), probed, ((mut qmp, has_abandoned), controller, host)) =
        tokio::try_join!(sources, guest, host)?;
    let Probed { address, agent, probe, stages } = probed;
    let is_new = sources.iter().all(Source::is_exclusive);
    let inventory = match is_new && !has_abandoned && !verb.dry_run {
        true => None,
        false => Some(Inventory::read(&mut qmp).await?),
    };
    for (stage, time) in stages.into_iter().chain(host).chain([("source", opened)]) {
        watch.record(stage, time);
    }
    watch.lap("prepare");
    Ok(Preflight { address, agent, probe, qmp, controller, inventory, sources })
}

/// An agent that has replied to `Probe`.
struct Probed {
    address: AgentAddress,
    agent: Agent,
    probe: ProbeResponse,
    stages: [(&'static str, Duration); 3],
}

/// Finds the agent and probes it. The address that the shim reports is decisive. While that is
/// awaited, the address on disk is tried, which is the same unless the state file is out of date.
/// `Probe` changes nothing, whichever agent replies.
async fn connect_agent(
    sandbox: &Sandbox,
    container: &str,
    verb: &HotPlug,
    deadline: Deadline,
) -> Result<Probed, Error> {
    let start = Instant::now();
    let ask = async || (sandbox.agent_address(deadline).await, start.elapsed());
    let Some(likely) = sandbox.likely_agent_address() else {
        let (address, found) = ask().await;
        return probe(address?, found, container, verb, deadline).await;
    };
    let attempt =
        async { Ok(probe(likely.clone(), Duration::ZERO, container, verb, deadline).await) };
    let check = async {
        match ask().await {
            (Ok(address), found) if address == likely => Ok(found),
            other => Err(other),
        }
    };
    match tokio::try_join!(attempt, check) {
        Ok((probed, found)) => probed.map(|mut probed| {
            probed.stages[0].1 = found;
            probed
        }),
        Err((address, found)) => probe(address?, found, container, verb, deadline).await,
    }
}

/// Connects to and probes the agent at `address`; finding the address took the time `found`.
async fn probe(
    address: AgentAddress,
    found: Duration,
    container: &str,
    verb: &HotPlug,
    deadline: Deadline,
) -> Result<Probed, Error> {
    let start = Instant::now();
    let agent = Agent::new(agent_address::dial(&address, deadline).await?);
    let dialed = start.elapsed();
    let deadline = deadline.capped(PROBE_TIMEOUT);
    let probe = agent.probe(container, verb.device_path.clone(), deadline).await?;
    let stages =
        [("agent_address", found), ("agent_dial", dialed), ("probe", start.elapsed() - dialed)];
    Ok(Probed { address, agent, probe, stages })
}

/// Checks whether a volume can be attached at `path`, as far as the guest knows before the attempt.
///
/// # Errors
/// It cannot.
pub(super) fn check_path(probe: &ProbeResponse, path: &str) -> Result<(), Error> {
    let guest = |reason, message: String| Err(Error::Guest { reason, message, undone: true });
    let container = probe.container.as_ref();
    if let Some(filter) = container.and_then(|container| container.filter.as_ref()) {
        if !filter.refused.is_empty() {
            return guest(
                Reason::REASON_UNSUPPORTED,
                format!("the device filter cannot be changed: {}", filter.refused),
            );
        }
        if filter.mode.enum_value() == Ok(FilterMode::FILTER_MODE_UNSPECIFIED) {
            return Err(mismatch("no device filter mode"));
        }
    }
    let state =
        container.and_then(|container| container.paths.iter().find(|state| state.path == path));
    let Some(state) = state else { return Err(mismatch("not all paths")) };
    match state.use_.enum_value() {
        Ok(PathUse::PATH_USE_TAKEN) => {
            Err(Error::PathTaken { path: path.to_owned(), taken_by: state.taken_by.clone() })
        }
        Ok(PathUse::PATH_USE_FREE | PathUse::PATH_USE_PARENT_MISSING) if state.read_only => guest(
            Reason::REASON_READ_ONLY_FILE_SYSTEM,
            format!("the file system of {path} is read-only"),
        ),
        Ok(PathUse::PATH_USE_FREE | PathUse::PATH_USE_PARENT_MISSING)
            if !state.refused.is_empty() =>
        {
            guest(Reason::REASON_UNSUPPORTED, state.refused.clone())
        }
        Ok(PathUse::PATH_USE_PARENT_MISSING) if has_no_node_kind(state) => guest(
            Reason::REASON_PARENT_MISSING,
            format!(
                "no directory of the container can hold {path}: a part of it is a file, or a \
                 link that leads nowhere or out of the container"
            ),
        ),
        Ok(PathUse::PATH_USE_FREE) if has_no_node_kind(state) => guest(
            Reason::REASON_UNSUPPORTED,
            format!(
                "{path} is on {}, where the guest can neither make nor mount a device node: \
                 choose a path below /dev",
                state.file_system
            ),
        ),
        Ok(PathUse::PATH_USE_FREE | PathUse::PATH_USE_PARENT_MISSING) => Ok(()),
        Ok(PathUse::PATH_USE_UNSPECIFIED) | Err(_) => Err(mismatch("an unknown use of a path")),
    }
}

fn has_no_node_kind(state: &PathState) -> bool {
    state.way.enum_value() == Ok(NodeWay::NODE_WAY_UNSPECIFIED)
}

fn mismatch(what: &str) -> Error {
    Error::AgentReply { method: "Probe", what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use block_volume_api::block_volume::{ContainerState, FilterState};
    use rstest::rstest;

    use super::*;

    fn probe(state: PathState, refused: &str) -> ProbeResponse {
        let filter = FilterState {
            mode: FilterMode::FILTER_MODE_NONE.into(),
            refused: refused.to_owned(),
            ..Default::default()
        };
        let state = PathState { path: "/dev/x".into(), ..state };
        let container = ContainerState {
            filter: Some(filter).into(),
            paths: vec![state],
            ..Default::default()
        };
        ProbeResponse { container: Some(container).into(), ..Default::default() }
    }

    fn state(usage: PathUse, way: NodeWay) -> PathState {
        PathState { use_: usage.into(), way: way.into(), ..Default::default() }
    }

    const MKNOD: NodeWay = NodeWay::NODE_WAY_MKNOD;
    const NO_KIND: NodeWay = NodeWay::NODE_WAY_UNSPECIFIED;

    #[test]
    fn a_free_path_passes() {
        for usage in [PathUse::PATH_USE_FREE, PathUse::PATH_USE_PARENT_MISSING] {
            assert!(check_path(&probe(state(usage, MKNOD), ""), "/dev/x").is_ok(), "{usage:?}");
            assert!(check_path(&probe(state(usage, NodeWay::NODE_WAY_BIND), ""), "/dev/x").is_ok());
        }
    }

    #[rstest]
    #[case(state(PathUse::PATH_USE_TAKEN, MKNOD), "", "path_taken")]
    #[case(state(PathUse::PATH_USE_PARENT_MISSING, NO_KIND), "", "parent_missing")]
    #[case(PathState { read_only: true, ..state(PathUse::PATH_USE_FREE, MKNOD) }, "", "read_only_file_system")]
    #[case(PathState { read_only: true, ..state(PathUse::PATH_USE_PARENT_MISSING, NO_KIND) }, "", "read_only_file_system")]
    #[case(state(PathUse::PATH_USE_FREE, NO_KIND), "", "unsupported")]
    #[case(PathState { refused: "Linux is too old".into(), ..state(PathUse::PATH_USE_PARENT_MISSING, NO_KIND) }, "", "unsupported")]
    #[case(state(PathUse::PATH_USE_FREE, MKNOD), "it has maps", "unsupported")]
    #[case(state(PathUse::PATH_USE_UNSPECIFIED, MKNOD), "", "agent_answer")]
    fn other_paths_are_refused(
        #[case] state: PathState,
        #[case] refused: &str,
        #[case] reason: &str,
    ) {
        let error = check_path(&probe(state, refused), "/dev/x").unwrap_err();
        assert_eq!(error.class().reason, reason);
    }

    #[test]
    fn a_path_that_is_not_in_the_reply_is_an_error() {
        let checked = check_path(&probe(state(PathUse::PATH_USE_FREE, MKNOD), ""), "/dev/y");
        assert!(matches!(checked, Err(Error::AgentReply { .. })));
    }
}
