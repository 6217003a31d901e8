//! All that can be known before anything is changed. The agent, QEMU and the source are asked at
//! the same time, because each of them takes a while to answer and none needs the others: the plug
//! then takes hardly longer than its three changes in QEMU and the guest's own work.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::{
    FilterMode, NodeWay, PathState, PathUse, ProbeResponse, Reason,
};

use crate::{
    Deadline, Error,
    agent::{self, Agent, AgentAddress},
    cli::HotPlug,
    controller::Controller,
    registry::Registry,
    sandbox::Place,
    source::Source,
    stopwatch::Stopwatch,
};
use block_volume_qmp::Qmp;

/// The longest that Probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) address: AgentAddress,
    pub(crate) agent: Agent,
    pub(crate) probe: ProbeResponse,
    pub(crate) qmp: Qmp,
    pub(crate) controller: Controller,
    /// All that QEMU has, which takes the longer the more volumes there are: only where something
    /// of the volumes may be there.
    pub(crate) registry: Option<Registry>,
    pub(crate) sources: Vec<Source>,
}

/// Asks all three. The first error ends it.
pub(crate) async fn prepare(
    place: &Place,
    container: &str,
    verb: &HotPlug,
    deadline: Deadline,
    watch: &mut Stopwatch,
) -> Result<Prepared, Error> {
    let guest = meet(place, container, verb, deadline);
    let host = async {
        let start = Instant::now();
        let mut qmp = place.connect_qmp(deadline).await?;
        let connected = start.elapsed();
        let controller = Controller::find(&mut qmp, verb.controller.as_deref()).await?;
        Ok((
            qmp,
            controller,
            [("qmp_connect", connected), ("qmp_query", start.elapsed() - connected)],
        ))
    };
    // Comes last: the others have sent their requests by the time that this is polled, and it never
    // waits.
    let sources = async {
        let start = Instant::now();
        let sources = Source::open_all(&verb.block_volume, verb.read_only)?;
        Ok((sources, start.elapsed()))
    };
    let (Met { address, agent, probe, stages }, (mut qmp, controller, host), (sources, opened)) =
        tokio::try_join!(guest, host, sources)?;
    let registry = match sources.iter().all(Source::is_sole) && !verb.dry_run {
        true => None,
        false => Some(Registry::read(&mut qmp).await?),
    };
    for (stage, time) in stages.into_iter().chain(host).chain([("source", opened)]) {
        watch.record(stage, time);
    }
    watch.lap("prepare");
    Ok(Prepared { address, agent, probe, qmp, controller, registry, sources })
}

/// An agent that has answered.
struct Met {
    address: AgentAddress,
    agent: Agent,
    probe: ProbeResponse,
    stages: [(&'static str, Duration); 3],
}

/// Finds the agent and asks it. The shim's word on its address counts; while that is awaited, the
/// address on disk is tried, which is the same but for a state file that is out of date. `Probe`
/// changes nothing, whoever answers it.
async fn meet(
    place: &Place,
    container: &str,
    verb: &HotPlug,
    deadline: Deadline,
) -> Result<Met, Error> {
    let start = Instant::now();
    let ask = async || (place.agent_address(deadline).await, start.elapsed());
    let Some(likely) = place.likely_agent_address() else {
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
        Ok((met, found)) => met.map(|mut met| {
            met.stages[0].1 = found;
            met
        }),
        Err((address, found)) => probe(address?, found, container, verb, deadline).await,
    }
}

/// Dials and asks the agent at `address`, which took the time `found` to find.
async fn probe(
    address: AgentAddress,
    found: Duration,
    container: &str,
    verb: &HotPlug,
    deadline: Deadline,
) -> Result<Met, Error> {
    let start = Instant::now();
    let agent = Agent::new(agent::dial(&address, deadline).await?);
    let dialled = start.elapsed();
    let deadline = deadline.within(PROBE_TIMEOUT);
    let probe = agent.probe(container, verb.device_path.clone(), deadline).await?;
    let stages =
        [("agent_address", found), ("agent_dial", dialled), ("probe", start.elapsed() - dialled)];
    Ok(Met { address, agent, probe, stages })
}

/// May a volume be put at `path`, as far as the guest can tell before it is asked to?
pub(crate) fn check_path(probe: &ProbeResponse, path: &str) -> Result<(), Error> {
    let guest = |reason, message: String| Err(Error::Guest { reason, message, undone: true });
    if let Some(filter) = probe.container.as_ref().and_then(|container| container.filter.as_ref()) {
        if !filter.refused.is_empty() {
            return guest(
                Reason::REASON_UNSUPPORTED,
                format!("the device filter cannot be changed: {}", filter.refused),
            );
        }
        if filter.mode.enum_value() == Ok(FilterMode::FILTER_MODE_UNSPECIFIED) {
            return Err(answer("no device filter mode"));
        }
    }
    let state = probe
        .container
        .as_ref()
        .and_then(|container| container.paths.iter().find(|state| state.path == path));
    let Some(state) = state else { return Err(answer("not all paths")) };
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
        Ok(PathUse::PATH_USE_PARENT_MISSING) if no_way(state) => guest(
            Reason::REASON_PARENT_MISSING,
            format!(
                "no directory of the container can hold {path}: a part of it is a file, or a link that leads out of the container or nowhere"
            ),
        ),
        Ok(PathUse::PATH_USE_FREE) if no_way(state) => {
            let text = format!(
                "{path} is on {}, where the guest can neither make a device node nor mount one: choose a path below /dev",
                state.file_system
            );
            guest(Reason::REASON_UNSUPPORTED, text)
        }
        Ok(PathUse::PATH_USE_FREE | PathUse::PATH_USE_PARENT_MISSING) => Ok(()),
        Ok(PathUse::PATH_USE_UNSPECIFIED) | Err(_) => Err(answer("an unknown use of a path")),
    }
}

fn no_way(state: &PathState) -> bool {
    state.way.enum_value() == Ok(NodeWay::NODE_WAY_UNSPECIFIED)
}

fn answer(what: &str) -> Error {
    Error::AgentAnswer { method: "Probe", what: what.to_owned() }
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
    const NO_WAY: NodeWay = NodeWay::NODE_WAY_UNSPECIFIED;

    #[test]
    fn a_free_path_passes() {
        for usage in [PathUse::PATH_USE_FREE, PathUse::PATH_USE_PARENT_MISSING] {
            assert!(check_path(&probe(state(usage, MKNOD), ""), "/dev/x").is_ok(), "{usage:?}");
            assert!(check_path(&probe(state(usage, NodeWay::NODE_WAY_BIND), ""), "/dev/x").is_ok());
        }
    }

    #[rstest]
    #[case(state(PathUse::PATH_USE_TAKEN, MKNOD), "", "path_taken")]
    #[case(state(PathUse::PATH_USE_PARENT_MISSING, NO_WAY), "", "parent_missing")]
    #[case(PathState { read_only: true, ..state(PathUse::PATH_USE_FREE, MKNOD) }, "", "read_only_file_system")]
    #[case(PathState { read_only: true, ..state(PathUse::PATH_USE_PARENT_MISSING, NO_WAY) }, "", "read_only_file_system")]
    #[case(state(PathUse::PATH_USE_FREE, NO_WAY), "", "unsupported")]
    #[case(PathState { refused: "Linux is too old".into(), ..state(PathUse::PATH_USE_PARENT_MISSING, NO_WAY) }, "", "unsupported")]
    #[case(state(PathUse::PATH_USE_FREE, MKNOD), "it has maps", "unsupported")]
    #[case(state(PathUse::PATH_USE_UNSPECIFIED, MKNOD), "", "agent_answer")]
    fn others_do_not(#[case] state: PathState, #[case] refused: &str, #[case] reason: &str) {
        let error = check_path(&probe(state, refused), "/dev/x").unwrap_err();
        assert_eq!(error.class().reason, reason);
    }

    #[test]
    fn a_path_that_was_not_answered_is_an_error() {
        let answer = check_path(&probe(state(PathUse::PATH_USE_FREE, MKNOD), ""), "/dev/y");
        assert!(matches!(answer, Err(Error::AgentAnswer { .. })));
    }
}
