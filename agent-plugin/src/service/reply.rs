//! Encodes results as messages of the API.

use std::time::Duration;

use protobuf::MessageField;

use crate::{
    api::{API_LEVEL, block_volume as wire},
    block::DeviceNumber,
    cgroup,
    device_node::{Existing, NodeKind, NodePath},
    disk_stats::DiskStats,
    error::Error,
    holder::Holder,
    scsi::ScsiHost,
    text::truncated,
    volume::{
        Attached, ContainerStatus, DetachOutput, Detached, Failed, Guest, Inspected, LeftBehind,
        Outcome, PathState, Resized,
    },
};

const CAPABILITIES: [&str; 5] = ["attach", "detach", "holders", "inspect", "resize"];

/// A message may quote paths of the host's request, each up to 4,096 bytes long.
const LONGEST_MESSAGE: usize = 1024;

/// A container may have any number of processes.
const MOST_HOLDERS: usize = 256;

pub(crate) fn failure(failed: &Failed) -> wire::Failure {
    let mut message = failed.error.message();
    for left in &failed.left {
        message.push_str("; the rollback failed: ");
        message.push_str(&left.message());
    }
    if failed.partial {
        message.push_str("; a part is done, repeat the request to continue");
    }
    wire::Failure {
        reason: failed.error.reason().into(),
        message: truncated(message, LONGEST_MESSAGE),
        serial: failed.serial.clone().unwrap_or_default(),
        undone: failed.is_rolled_back(),
        ..Default::default()
    }
}

fn some_failure(failed: &Failed) -> MessageField<wire::Failure> {
    Some(failure(failed)).into()
}

pub(crate) fn attach(
    result: Result<&[Attached], &Failed>,
    stages: &[(&'static str, Duration)],
) -> wire::AttachResponse {
    let mut response =
        wire::AttachResponse { stages: stages.iter().map(stage).collect(), ..Default::default() };
    match result {
        Ok(volumes) => response.attached = volumes.iter().map(attached).collect(),
        Err(failed) => response.failure = some_failure(failed),
    }
    response
}

pub(crate) fn detach(
    result: Result<&DetachOutput, &Failed>,
    stages: &[(&'static str, Duration)],
) -> wire::DetachResponse {
    let mut response =
        wire::DetachResponse { stages: stages.iter().map(stage).collect(), ..Default::default() };
    let detached = |volume: &Detached| wire::Detached {
        serial: volume.serial.clone(),
        unchanged: volume.unchanged,
        ..Default::default()
    };
    match result {
        Ok(output) => {
            response.detached = output.volumes.iter().map(detached).collect();
            response.holders = holders(&output.interrupted);
            response.left_behind = output.left_behind.iter().map(left_behind).collect();
        }
        Err(failed) => {
            response.failure = some_failure(failed);
            if let Error::Busy { holders: found, .. } = &*failed.error {
                response.holders = holders(found);
            }
        }
    }
    response
}

fn left_behind(left: &LeftBehind) -> wire::LeftBehind {
    wire::LeftBehind {
        serial: left.serial.clone(),
        path: left.path.clone(),
        reason: truncated(left.reason.clone(), LONGEST_MESSAGE),
        ..Default::default()
    }
}

pub(crate) fn inspect(result: Result<&[Inspected], &Failed>) -> wire::InspectResponse {
    let mut response = wire::InspectResponse::default();
    match result {
        Ok(volumes) => response.inspected = volumes.iter().map(inspected).collect(),
        Err(failed) => response.failure = some_failure(failed),
    }
    response
}

pub(crate) fn resize(
    result: Result<&[Resized], &Failed>,
    stages: &[(&'static str, Duration)],
) -> wire::ResizeResponse {
    let mut response =
        wire::ResizeResponse { stages: stages.iter().map(stage).collect(), ..Default::default() };
    let resized = |volume: &Resized| wire::Resized {
        serial: volume.serial.clone(),
        unchanged: volume.unchanged,
        size: volume.size,
        ..Default::default()
    };
    match result {
        Ok(volumes) => response.resized = volumes.iter().map(resized).collect(),
        Err(failed) => response.failure = some_failure(failed),
    }
    response
}

/// The API level, the version and the capabilities are in every reply, also in a failure.
pub(crate) fn probe(
    result: Result<&(Guest, Option<wire::ContainerState>), &Failed>,
) -> wire::ProbeResponse {
    let mut response = wire::ProbeResponse {
        api_level: API_LEVEL,
        plugin_version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
        ..Default::default()
    };
    match result {
        Ok((guest, container)) => {
            let host = |host: &ScsiHost| wire::ScsiHost {
                number: host.number,
                controller: host.controller.clone(),
                ..Default::default()
            };
            response.scsi_hosts = guest.hosts.iter().map(host).collect();
            response.scan_mode.clone_from(&guest.scan_mode);
            response.container = container.clone().into();
        }
        Err(failed) => {
            response.failure = some_failure(failed);
            if let Error::Container { source, .. } = &*failed.error {
                let status = container_status(source.into()).into();
                response.container =
                    Some(wire::ContainerState { status, ..Default::default() }).into();
            }
        }
    }
    response
}

pub(crate) fn container_status(status: ContainerStatus) -> wire::ContainerStatus {
    match status {
        ContainerStatus::Running => wire::ContainerStatus::CONTAINER_STATUS_RUNNING,
        ContainerStatus::Paused => wire::ContainerStatus::CONTAINER_STATUS_PAUSED,
        ContainerStatus::Stopped => wire::ContainerStatus::CONTAINER_STATUS_STOPPED,
        ContainerStatus::Created => wire::ContainerStatus::CONTAINER_STATUS_CREATED,
        ContainerStatus::UnknownId => wire::ContainerStatus::CONTAINER_STATUS_UNKNOWN_ID,
        ContainerStatus::Unreachable => wire::ContainerStatus::CONTAINER_STATUS_UNREACHABLE,
    }
}

pub(crate) fn filter_state(filter: &cgroup::Filter<'_>) -> wire::FilterState {
    wire::FilterState {
        mode: filter_mode(filter.mode()).into(),
        programs: filter.programs().to_vec(),
        refused: filter.check().err().map(|error| error.message()).unwrap_or_default(),
        ..Default::default()
    }
}

pub(crate) fn path_state(state: PathState) -> wire::PathState {
    let mut encoded = wire::PathState {
        path: state.path,
        use_: match (&state.parent, &state.existing) {
            (None, _) => wire::PathUse::PATH_USE_PARENT_MISSING,
            (Some(parent), _) if parent.is_missing => wire::PathUse::PATH_USE_PARENT_MISSING,
            (_, Some(_)) => wire::PathUse::PATH_USE_TAKEN,
            (_, None) => wire::PathUse::PATH_USE_FREE,
        }
        .into(),
        ..Default::default()
    };
    if let Some(existing) = state.existing {
        encoded.taken_by = existing.to_string();
        if let Existing::Block(number, _) = existing {
            encoded.device = device_number(number);
        }
    }
    if let Some(parent) = state.parent {
        encoded.file_system = parent.file_system;
        encoded.nodev = parent.nodev;
        encoded.read_only = parent.read_only;
        match parent.kind {
            Ok(kind) => encoded.way = node_kind(kind).into(),
            Err(error) => encoded.refused = error.message(),
        }
    }
    encoded
}

fn stage((name, taken): &(&'static str, Duration)) -> wire::Stage {
    let micros = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
    wire::Stage { name: (*name).to_owned(), micros, ..Default::default() }
}

fn attached(volume: &Attached) -> wire::Attached {
    wire::Attached {
        serial: volume.serial.clone(),
        unchanged: volume.unchanged,
        guest_device: volume.guest_device.clone(),
        outcome: Some(outcome(&volume.outcome)).into(),
        size: volume.size,
        read_only: volume.read_only,
        ..Default::default()
    }
}

fn outcome(outcome: &Outcome) -> wire::Outcome {
    wire::Outcome {
        device: device_number(outcome.device),
        node: node_kind(outcome.node).into(),
        parents_made: outcome
            .parents_made
            .iter()
            .map(NodePath::as_str)
            .map(str::to_owned)
            .collect(),
        filter: filter_mode(outcome.filter).into(),
        allowed_before: outcome.allowed_before,
        container_started: outcome.container_started,
        ..Default::default()
    }
}

fn inspected(inspected: &Inspected) -> wire::Inspected {
    let mut encoded = wire::Inspected {
        serial: inspected.serial.clone(),
        size: inspected.size,
        read_only: inspected.read_only,
        container_running: inspected.container == ContainerStatus::Running,
        container_status: container_status(inspected.container).into(),
        container_started: inspected.container_started,
        node_present: inspected.node_present,
        allowed: inspected.allowed,
        filter: inspected.filter.map(filter_mode).unwrap_or_default().into(),
        leftovers: inspected.leftovers.clone(),
        stats: inspected.stats.map(stats).into(),
        holders: holders(&inspected.holders),
        unknown: why(inspected.unknown.as_deref()),
        holders_unknown: why(inspected.holders_unknown.as_deref()),
        ..Default::default()
    };
    if let Some(disk) = &inspected.disk {
        encoded.disk_present = true;
        encoded.guest_device.clone_from(&disk.name);
        encoded.device = device_number(disk.number);
    }
    encoded
}

fn why(text: Option<&str>) -> String {
    truncated(text.unwrap_or_default().to_owned(), LONGEST_MESSAGE)
}

fn stats(stats: DiskStats) -> wire::BlockStats {
    wire::BlockStats {
        reads: stats.reads,
        read_bytes: stats.read_bytes,
        read_ms: stats.read_ms,
        writes: stats.writes,
        written_bytes: stats.written_bytes,
        write_ms: stats.write_ms,
        discards: stats.discards,
        flushes: stats.flushes,
        in_flight: stats.in_flight,
        errors: stats.errors,
        ..Default::default()
    }
}

fn holders(holders: &[Holder]) -> Vec<wire::Holder> {
    let holder = |holder: &Holder| wire::Holder {
        serial: holder.serial.clone(),
        kind: holder.kind.name().to_owned(),
        pid: holder.pid,
        command: holder.command.clone(),
        container_id: holder.container_id.clone(),
        detail: holder.detail.clone(),
        ..Default::default()
    };
    holders.iter().take(MOST_HOLDERS).map(holder).collect()
}

fn device_number(number: DeviceNumber) -> MessageField<wire::DeviceNumber> {
    Some(wire::DeviceNumber { major: number.major, minor: number.minor, ..Default::default() })
        .into()
}

fn filter_mode(mode: cgroup::Mode) -> wire::FilterMode {
    match mode {
        cgroup::Mode::None => wire::FilterMode::FILTER_MODE_NONE,
        cgroup::Mode::V1 => wire::FilterMode::FILTER_MODE_V1,
        cgroup::Mode::Bpf => wire::FilterMode::FILTER_MODE_BPF,
    }
}

fn node_kind(kind: NodeKind) -> wire::NodeWay {
    match kind {
        NodeKind::Mknod => wire::NodeWay::NODE_WAY_MKNOD,
        NodeKind::Bind => wire::NodeWay::NODE_WAY_BIND,
    }
}
