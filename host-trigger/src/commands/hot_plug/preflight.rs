//! The preflight: everything that can be known without the guest, before anything is changed. The
//! agent, QEMU and the source are reached at the same time, because each takes a while to reply and
//! none needs the others. What the guest is asked comes after it: it begins an attach, and says
//! whether that can succeed before it changes anything.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::{
    FilterMode, NodeWay, PathState, PathUse, ProbeResponse, Reason,
};
use block_volume_qmp::{GREETING_TIMEOUT, Qmp};

use super::{HotPlug, mounts, request::PlugRequest};
use crate::{
    Deadline, Error,
    host::source::Source,
    kata::{
        agent::Agent,
        agent_address::{self, AgentAddress},
        sandbox::Sandbox,
    },
    ops::guest_kernel,
    qemu::{abandoned, controller::Controller, inventory::Inventory, record::IntentRecord},
    stopwatch::Stopwatch,
};

/// What was found.
#[derive(Debug)]
pub(super) struct Preflight {
    pub(super) address: AgentAddress,
    pub(super) agent: Agent,
    pub(super) qmp: Qmp,
    pub(super) controller: Controller,
    /// QEMU's inventory, which takes longer the more volumes there are: read only if QEMU may have
    /// something of these volumes.
    pub(super) inventory: Option<Inventory>,
    pub(super) sources: Vec<Source>,
}

/// Reaches all three. The first error ends it.
pub(super) async fn run(
    sandbox: &Sandbox,
    verb: &HotPlug,
    request: &PlugRequest,
    deadline: Deadline,
    watch: &mut Stopwatch,
) -> Result<Preflight, Error> {
    let guest = async {
        let dialed = connect_agent(sandbox, deadline).await?;
        mounts::check_agent(&dialed.agent, request, deadline).await?;
        Ok::<_, Error>(dialed)
    };
    let host = async {
        let start = Instant::now();
        let wanted = verb.controller.as_deref();
        let queries: Vec<_> =
            Inventory::controller_queries(wanted).into_iter().chain([abandoned::query()]).collect();
        let (mut qmp, mut replies) =
            sandbox.connect_qmp_within(deadline, GREETING_TIMEOUT, &queries).await?;
        let controller = Inventory::find_controller(&mut qmp, wanted, &mut replies).await?;
        let has_abandoned = abandoned::exist(&mut replies)?;
        Ok(((qmp, has_abandoned), controller, [("qmp_connect", start.elapsed())]))
    };
    // Polled first: its thread works while the others are sent their requests.
    let sources = async {
        let start = Instant::now();
        let sources = Source::open_all(&request.sources, request.read_only, deadline).await?;
        Ok((sources, start.elapsed()))
    };
    let ((sources, opened), dialed, ((mut qmp, has_abandoned), controller, host)) =
        tokio::try_join!(sources, guest, host)?;
    let Dialed { address, agent, stages } = dialed;
    let is_new = sources.iter().all(Source::is_exclusive);
    let inventory = match is_new && !has_abandoned && !verb.dry_run {
        true => None,
        false => Some(Inventory::read(&mut qmp).await?),
    };
    for (stage, time) in stages.into_iter().chain(host).chain([("source", opened)]) {
        watch.record(stage, time);
    }
    watch.lap("prepare");
    Ok(Preflight { address, agent, qmp, controller, inventory, sources })
}

/// An agent that is connected.
struct Dialed {
    address: AgentAddress,
    agent: Agent,
    stages: [(&'static str, Duration); 2],
}

/// Finds the agent and connects to it. The address that the shim reports is decisive. While that is
/// awaited, the address on disk is tried, which is the same unless the state file is out of date.
async fn connect_agent(sandbox: &Sandbox, deadline: Deadline) -> Result<Dialed, Error> {
    let start = Instant::now();
    let ask = async || (sandbox.agent_address(deadline).await, start.elapsed());
    let Some(likely) = sandbox.likely_agent_address() else {
        let (address, found) = ask().await;
        let dialed = dial(address?, found, deadline).await;
        return dialed.map_err(|e| sandbox.or_starting(e));
    };
    let attempt = async { Ok(dial(likely.clone(), Duration::ZERO, deadline).await) };
    let check = async {
        match ask().await {
            (Ok(address), found) if address == likely => Ok(found),
            other => Err(other),
        }
    };
    match tokio::try_join!(attempt, check) {
        Ok((dialed, found)) => dialed.map(|mut dialed| {
            dialed.stages[0].1 = found;
            dialed
        }),
        Err((address, found)) => dial(address?, found, deadline).await,
    }
}

/// Connects to the agent at `address`; finding the address took the time `found`.
async fn dial(address: AgentAddress, found: Duration, deadline: Deadline) -> Result<Dialed, Error> {
    let start = Instant::now();
    let agent = Agent::new(agent_address::dial(&address, deadline).await?);
    let stages = [("agent_address", found), ("agent_dial", start.elapsed())];
    Ok(Dialed { address, agent, stages })
}

/// Checks whether a volume can be attached as `intent` has it, as far as the guest knows before the
/// attempt.
///
/// # Errors
/// It cannot.
pub(super) fn check_path(probe: &ProbeResponse, intent: &IntentRecord) -> Result<(), Error> {
    let IntentRecord { path, mount, .. } = intent;
    guest_kernel::check(probe)?;
    let guest = |reason, message: String| Err(Error::guest(reason, message));
    let container = probe.container.as_ref();
    // What is mounted is no device: it needs no right.
    let filter = container.and_then(|container| container.filter.as_ref());
    if let Some(filter) = filter.filter(|_| mount.is_none()) {
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
        container.and_then(|container| container.paths.iter().find(|state| state.path == *path));
    let Some(state) = state else { return Err(mismatch("not all paths")) };
    if mount.is_some() {
        return mounts::check_path(state);
    }
    match state.use_.enum_value() {
        Ok(PathUse::PATH_USE_TAKEN) => {
            Err(Error::PathTaken { path: path.clone(), taken_by: state.taken_by.clone() })
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

pub(super) fn mismatch(what: &str) -> Error {
    Error::AgentReply { method: "Probe", what: what.to_owned() }
}

#[cfg(test)]
mod tests {
    use block_volume_api::block_volume::{ContainerState, FilterState, KernelState};
    use rstest::rstest;

    use super::*;
    use crate::qemu::record::{Record, samples::INTENT};

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

    fn intent(path: &str) -> IntentRecord {
        let Some(Record::Intent(intent)) = Record::from_opaque(INTENT) else { panic!("{INTENT}") };
        IntentRecord { path: path.into(), ..intent }
    }

    const MKNOD: NodeWay = NodeWay::NODE_WAY_MKNOD;
    const NO_KIND: NodeWay = NodeWay::NODE_WAY_UNSPECIFIED;

    #[test]
    fn a_free_path_passes() {
        for usage in [PathUse::PATH_USE_FREE, PathUse::PATH_USE_PARENT_MISSING] {
            assert!(
                check_path(&probe(state(usage, MKNOD), ""), &intent("/dev/x")).is_ok(),
                "{usage:?}"
            );
            assert!(
                check_path(&probe(state(usage, NodeWay::NODE_WAY_BIND), ""), &intent("/dev/x"))
                    .is_ok()
            );
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
        let error = check_path(&probe(state, refused), &intent("/dev/x")).unwrap_err();
        assert_eq!(error.class().reason, reason);
    }

    #[test]
    fn a_kernel_without_what_every_volume_needs_is_refused() {
        let mut probe = probe(state(PathUse::PATH_USE_FREE, MKNOD), "");
        let lacks = |name: &str| {
            let missing = vec![name.to_owned()];
            Some(KernelState { missing, ..Default::default() }).into()
        };
        probe.kernel = lacks("mount_setattr");
        check_path(&probe, &intent("/dev/x")).unwrap();
        probe.kernel = lacks("sd");
        assert_eq!(
            check_path(&probe, &intent("/dev/x")).unwrap_err().class().reason,
            "unsupported"
        );
    }

    #[test]
    fn a_path_that_is_not_in_the_reply_is_an_error() {
        let checked =
            check_path(&probe(state(PathUse::PATH_USE_FREE, MKNOD), ""), &intent("/dev/y"));
        assert!(matches!(checked, Err(Error::AgentReply { .. })));
    }
}
