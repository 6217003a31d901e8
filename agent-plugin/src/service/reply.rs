//! Encodes results as messages of the API.

mod inspected;

use super::{message::Message, operation::Output, rpc::Rpc};
use crate::{
    api::{
        API_LEVEL,
        block_volume::{self as wire, Reason},
    },
    block::DeviceNumber,
    cgroup,
    device_node::NodeKind,
    error::Error,
    holder::Holder,
    kernel::Kernel,
    text::truncated,
    volume::{
        Attached, ContainerStatus, DetachOutput, Failed, Outcome, PathState, PathWay, Probed, Said,
        Taken, Way,
    },
};

const CAPABILITIES: [&str; 8] =
    ["attach", "detach", "holders", "inspect", "resize", "plug", "unplug", "mount"];

/// A message may quote paths of the host's request, each up to 4,096 bytes long.
const LONGEST_MESSAGE: usize = 1024;

/// A container may have any number of processes.
const MOST_HOLDERS: usize = 256;

/// Why a request failed, as the caller gets it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) serial: String,
    pub(crate) undone: bool,
    pub(crate) owners_changed: u64,
}

pub(crate) fn failure(failed: &Failed) -> Failure {
    let mut message = failed.error.message();
    for left in &failed.left {
        message.push_str("; the rollback failed: ");
        message.push_str(&left.message());
    }
    if failed.partial {
        message.push_str("; a part is done, repeat the request to continue");
    }
    Failure {
        reason: failed.error.reason(),
        message: truncated(message, LONGEST_MESSAGE),
        serial: failed.serial.clone().unwrap_or_default(),
        undone: failed.is_rolled_back(),
        owners_changed: failed.error.owners_changed(),
    }
}

impl Failure {
    fn encoded(&self) -> Message {
        let mut failure = Message::default();
        failure.choice(1, self.reason as i32);
        failure.text(2, &self.message);
        failure.text(3, &self.serial);
        failure.flag(4, self.undone);
        failure.number(5, self.owners_changed);
        failure
    }
}

/// Encodes the reply to a request.
pub(super) fn encoded(rpc: Rpc, result: Result<&Output, &Failed>, stages: &[Taken]) -> Vec<u8> {
    let mut reply = Message::default();
    if rpc == Rpc::Probe {
        // In every reply, also in a failure.
        add_plugin(&mut reply);
    }
    match result {
        Ok(Output::Probed(probed)) => add_probed(&mut reply, probed),
        Ok(Output::Attached(volumes)) => add_attached(&mut reply, volumes),
        Ok(Output::Detached(output)) => add_detached(&mut reply, output),
        Ok(Output::Inspected(volumes)) => {
            volumes.iter().for_each(|volume| reply.message(1, &inspected::encoded(volume)));
        }
        Ok(Output::Resized(volumes)) => {
            for volume in volumes {
                let mut resized = Message::default();
                resized.text(1, &volume.serial);
                resized.flag(2, volume.unchanged);
                resized.number(3, volume.size);
                if let Some(grown) = &volume.file_system {
                    resized.number(4, grown.before);
                    resized.number(5, grown.size);
                    resized.text(6, &why(grown.not_grown.as_deref()));
                }
                reply.message(2, &resized);
            }
        }
        Err(failed) => add_failure(&mut reply, rpc, failed),
    }
    match rpc {
        Rpc::Probe | Rpc::Inspect | Rpc::Hold => {}
        Rpc::Attach | Rpc::Resize => add_stages(&mut reply, 3, stages),
        Rpc::Detach => add_stages(&mut reply, 4, stages),
        Rpc::Plug => {
            add_stages(&mut reply, 3, stages);
            reply = step(ATTACHED, &reply);
        }
    }
    reply.into_bytes()
}

/// Encodes what is said in a conversation, for [`encoded`] has the last reply.
pub(super) fn said(said: &Said<'_>, stages: &[Taken]) -> Vec<u8> {
    let mut reply = Message::default();
    let field = match said {
        Said::Ready(probed) => {
            add_plugin(&mut reply);
            add_probed(&mut reply, probed);
            return step(READY, &reply).into_bytes();
        }
        Said::Prepared(volumes) => {
            add_attached(&mut reply, volumes);
            PREPARED
        }
        Said::Attached(volumes) => {
            add_attached(&mut reply, volumes);
            ATTACHED
        }
    };
    add_stages(&mut reply, 3, stages);
    step(field, &reply).into_bytes()
}

// The steps of PlugResponse.
const READY: u8 = 1;
const PREPARED: u8 = 2;
const ATTACHED: u8 = 3;

fn step(field: u8, reply: &Message) -> Message {
    let mut step = Message::default();
    step.message(field, reply);
    step
}

/// The message of an Unplug that the disks are released.
pub(super) fn released(serials: &[&str]) -> Vec<u8> {
    let mut released = Message::default();
    released.texts(1, serials);
    step(RELEASED, &released).into_bytes()
}

/// The last message of an Unplug, with what a Detach replies.
pub(super) fn unplugged(detached: &[u8]) -> Vec<u8> {
    let mut message = Message::default();
    message.bytes(DETACHED, detached);
    message.into_bytes()
}

// The steps of UnplugResponse.
const RELEASED: u8 = 1;
const DETACHED: u8 = 2;

fn add_plugin(reply: &mut Message) {
    reply.number(1, API_LEVEL.into());
    reply.text(2, env!("CARGO_PKG_VERSION"));
    reply.texts(3, &CAPABILITIES);
}

fn add_attached(reply: &mut Message, volumes: &[Attached]) {
    volumes.iter().for_each(|volume| reply.message(1, &attached(volume)));
}

fn add_stages(reply: &mut Message, field: u8, stages: &[Taken]) {
    for (name, taken) in stages {
        let mut stage = Message::default();
        stage.text(1, name);
        stage.number(2, u64::try_from(taken.as_micros()).unwrap_or(u64::MAX));
        reply.message(field, &stage);
    }
}

fn add_failure(reply: &mut Message, rpc: Rpc, failed: &Failed) {
    let field = match rpc {
        Rpc::Probe => 7,
        Rpc::Attach | Rpc::Plug | Rpc::Detach | Rpc::Inspect => 2,
        // Nothing fails in a Hold.
        Rpc::Resize | Rpc::Hold => 1,
    };
    reply.message(field, &failure(failed).encoded());
    match (rpc, &*failed.error) {
        (Rpc::Probe, Error::Container { source, .. }) => {
            let mut container = Message::default();
            container.choice(4, status(source.into()));
            reply.message(6, &container);
        }
        (Rpc::Detach, Error::Busy { holders, .. }) => add_holders(reply, 3, holders),
        _ => {}
    }
}

fn add_detached(reply: &mut Message, output: &DetachOutput) {
    for volume in &output.volumes {
        let mut detached = Message::default();
        detached.text(1, &volume.serial);
        detached.flag(2, volume.unchanged);
        reply.message(1, &detached);
    }
    add_holders(reply, 3, &output.interrupted);
    for left in &output.left_behind {
        let mut encoded = Message::default();
        encoded.text(1, &left.serial);
        encoded.text(2, &left.path);
        encoded.text(3, &truncated(left.reason.clone(), LONGEST_MESSAGE));
        reply.message(5, &encoded);
    }
}

fn add_probed(reply: &mut Message, Probed { guest, container }: &Probed) {
    for host in &guest.hosts {
        let mut encoded = Message::default();
        encoded.number(1, host.number.into());
        encoded.text(2, &host.controller);
        reply.message(4, &encoded);
    }
    reply.text(5, &guest.scan_mode);
    if let Some(container) = container {
        let mut filter = Message::default();
        filter.choice(1, filter_mode(container.filter));
        filter.numbers(2, &container.programs);
        filter.text(3, &container.filter_refused);
        let mut encoded = Message::default();
        encoded.flag(1, container.user_namespace);
        encoded.message(2, &filter);
        container.paths.iter().for_each(|state| encoded.message(3, &path_state(state)));
        encoded.choice(4, status(ContainerStatus::Running));
        reply.message(6, &encoded);
    }
    let Kernel { release, missing } = &guest.kernel;
    let mut kernel = Message::default();
    kernel.text(1, release);
    kernel.texts(2, missing);
    reply.message(8, &kernel);
}

fn status(status: ContainerStatus) -> i32 {
    (match status {
        ContainerStatus::Running => wire::ContainerStatus::CONTAINER_STATUS_RUNNING,
        ContainerStatus::Paused => wire::ContainerStatus::CONTAINER_STATUS_PAUSED,
        ContainerStatus::Stopped => wire::ContainerStatus::CONTAINER_STATUS_STOPPED,
        ContainerStatus::Created => wire::ContainerStatus::CONTAINER_STATUS_CREATED,
        ContainerStatus::UnknownId => wire::ContainerStatus::CONTAINER_STATUS_UNKNOWN_ID,
        ContainerStatus::Unreachable => wire::ContainerStatus::CONTAINER_STATUS_UNREACHABLE,
    }) as i32
}

fn path_state(state: &PathState) -> Message {
    let mut encoded = Message::default();
    encoded.text(1, &state.path);
    let path_use = match (&state.parent, &state.taken) {
        (None, _) => wire::PathUse::PATH_USE_PARENT_MISSING,
        (Some(parent), _) if parent.is_missing => wire::PathUse::PATH_USE_PARENT_MISSING,
        (_, Some(_)) => wire::PathUse::PATH_USE_TAKEN,
        (_, None) => wire::PathUse::PATH_USE_FREE,
    };
    encoded.choice(2, path_use as i32);
    if let Some((by, number)) = &state.taken {
        encoded.text(3, by);
        if let Some(number) = number {
            encoded.message(4, &device_number(*number));
        }
    }
    if let Some(parent) = &state.parent {
        encoded.text(5, &parent.file_system);
        encoded.flag(6, parent.nodev);
        encoded.flag(7, parent.read_only);
        match &parent.way {
            Ok(way) => encoded.choice(8, path_way(*way)),
            Err(error) => encoded.text(9, &error.message()),
        }
    }
    encoded
}

fn attached(volume: &Attached) -> Message {
    let mut encoded = Message::default();
    encoded.text(1, &volume.serial);
    encoded.flag(2, volume.unchanged);
    encoded.text(3, &volume.guest_device);
    encoded.message(4, &outcome(&volume.outcome));
    encoded.number(5, volume.size);
    encoded.flag(6, volume.read_only);
    encoded
}

fn outcome(outcome: &Outcome) -> Message {
    let mut encoded = Message::default();
    encoded.message(1, &device_number(outcome.device));
    let path_way = match outcome.way {
        Way::Node(kind) => PathWay::Node(kind),
        Way::Mount(_) => PathWay::Mount,
    };
    encoded.choice(2, self::path_way(path_way));
    if let Some(mode) = outcome.filter {
        encoded.choice(3, filter_mode(mode));
    }
    for parent in &outcome.parents_made {
        encoded.texts(4, &[parent.as_str()]);
    }
    encoded.flag(5, outcome.allowed_before);
    encoded.number(6, outcome.container_started);
    encoded.number(7, outcome.errors_before);
    if let Way::Mount(mounted) = outcome.way {
        let mut message = Message::default();
        message.text(1, mounted.kind.name());
        message.flag(2, mounted.idmapped);
        message.number(3, mounted.owners_changed);
        encoded.message(8, &message);
    }
    encoded
}

fn why(text: Option<&str>) -> String {
    truncated(text.unwrap_or_default().to_owned(), LONGEST_MESSAGE)
}

fn add_holders(message: &mut Message, field: u8, holders: &[Holder]) {
    for holder in holders.iter().take(MOST_HOLDERS) {
        let mut encoded = Message::default();
        encoded.text(1, &holder.serial);
        encoded.text(2, holder.kind.name());
        encoded.number(3, holder.pid.into());
        encoded.text(4, &holder.command);
        encoded.text(5, &holder.container_id);
        encoded.text(6, &holder.detail);
        message.message(field, &encoded);
    }
}

fn device_number(number: DeviceNumber) -> Message {
    let mut encoded = Message::default();
    encoded.number(1, number.major.into());
    encoded.number(2, number.minor.into());
    encoded
}

fn filter_mode(mode: cgroup::Mode) -> i32 {
    (match mode {
        cgroup::Mode::None => wire::FilterMode::FILTER_MODE_NONE,
        cgroup::Mode::V1 => wire::FilterMode::FILTER_MODE_V1,
        cgroup::Mode::Bpf => wire::FilterMode::FILTER_MODE_BPF,
    }) as i32
}

fn path_way(way: PathWay) -> i32 {
    (match way {
        PathWay::Node(NodeKind::Mknod) => wire::NodeWay::NODE_WAY_MKNOD,
        PathWay::Node(NodeKind::Bind) => wire::NodeWay::NODE_WAY_BIND,
        PathWay::Mount => wire::NodeWay::NODE_WAY_MOUNT,
    }) as i32
}

#[cfg(test)]
mod tests;
