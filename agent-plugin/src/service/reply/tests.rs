//! Every field of a reply, as the generated code of the host reads it.

use std::time::Duration;

use protobuf::Message as _;

use super::*;
use crate::{
    block::BlockDevice,
    device_node::NodePath,
    disk_stats::DiskStats,
    error::{BoxedError, Unsupported},
    file_system::{Kind, Space},
    holder::HolderKind,
    scsi::{ScsiAddress, ScsiDevice, ScsiHost},
    volume::{
        Detached, Grown, Guest, Inspected, LeftBehind, Mounted, ParentState, ProbedContainer,
        Resized,
    },
};

const NUMBER: DeviceNumber = DeviceNumber { major: 8, minor: 16 };
const STAGES: [Taken; 2] =
    [("lookup", Duration::from_micros(300)), ("delete", Duration::from_micros(0))];

fn read<M: protobuf::Message>(rpc: Rpc, output: &Output) -> M {
    M::parse_from_bytes(&encoded(rpc, Ok(output), &STAGES)).unwrap()
}

fn stages() -> Vec<wire::Stage> {
    let stage = |(name, taken): Taken| wire::Stage {
        name: name.into(),
        micros: u64::try_from(taken.as_micros()).unwrap(),
        ..Default::default()
    };
    STAGES.map(stage).to_vec()
}

fn device() -> protobuf::MessageField<wire::DeviceNumber> {
    Some(wire::DeviceNumber { major: 8, minor: 16, ..Default::default() }).into()
}

fn holder() -> Holder {
    Holder {
        serial: "s".into(),
        kind: HolderKind::Process,
        pid: 7,
        command: "cat".into(),
        container_id: "c1".into(),
        detail: "/dev/xvda".into(),
    }
}

fn wire_holder() -> wire::Holder {
    wire::Holder {
        serial: "s".into(),
        kind: "process".into(),
        pid: 7,
        command: "cat".into(),
        container_id: "c1".into(),
        detail: "/dev/xvda".into(),
        ..Default::default()
    }
}

fn attached_volume() -> Attached {
    let outcome = Outcome {
        device: NUMBER,
        way: Way::Node(NodeKind::Bind),
        parents_made: vec![NodePath::new("/a").unwrap(), NodePath::new("/a/b").unwrap()],
        filter: Some(cgroup::Mode::Bpf),
        allowed_before: true,
        container_started: 5,
        errors_before: 6,
    };
    Attached {
        serial: "s".into(),
        unchanged: true,
        guest_device: "sda".into(),
        outcome,
        size: u64::MAX,
        read_only: true,
    }
}

fn wire_attached() -> wire::Attached {
    let outcome = wire::Outcome {
        device: device(),
        node: wire::NodeWay::NODE_WAY_BIND.into(),
        filter: wire::FilterMode::FILTER_MODE_BPF.into(),
        parents_made: vec!["/a".into(), "/a/b".into()],
        allowed_before: true,
        container_started: 5,
        errors_before: 6,
        ..Default::default()
    };
    wire::Attached {
        serial: "s".into(),
        unchanged: true,
        guest_device: "sda".into(),
        outcome: Some(outcome).into(),
        size: u64::MAX,
        read_only: true,
        ..Default::default()
    }
}

#[test]
fn a_mount_has_its_own_outcome() {
    let mounted = Mounted { kind: Kind::Ext4, idmapped: true, owners_changed: 7 };
    let mut volume = attached_volume();
    volume.outcome.way = Way::Mount(mounted);
    (volume.outcome.filter, volume.outcome.allowed_before) = (None, false);
    let reply: wire::AttachResponse = read(Rpc::Attach, &Output::Attached(vec![volume]));
    let outcome = &reply.attached[0].outcome;
    assert_eq!(outcome.node, wire::NodeWay::NODE_WAY_MOUNT.into());
    assert_eq!(outcome.filter, wire::FilterMode::FILTER_MODE_UNSPECIFIED.into());
    let mounted = wire::Mounted {
        file_system: "ext4".into(),
        idmapped: true,
        owners_changed: 7,
        ..Default::default()
    };
    assert_eq!(outcome.mounted, Some(mounted).into());
}

#[test]
fn attach_and_resize() {
    let output = Output::Attached(vec![attached_volume()]);
    let reply: wire::AttachResponse = read(Rpc::Attach, &output);
    assert_eq!((reply.attached, reply.stages), (vec![wire_attached()], stages()));

    let grown = Grown { before: 1, size: 2, not_grown: Some("no".into()) };
    let resized =
        Resized { serial: "s".into(), unchanged: true, size: 512, file_system: Some(grown) };
    let reply: wire::ResizeResponse = read(Rpc::Resize, &Output::Resized(vec![resized]));
    let expected = wire::Resized {
        serial: "s".into(),
        unchanged: true,
        size: 512,
        file_system_before: 1,
        file_system_size: 2,
        not_grown: "no".into(),
        ..Default::default()
    };
    assert_eq!((reply.resized, reply.stages), (vec![expected], stages()));
}

#[test]
fn detach() {
    let left = LeftBehind { serial: "s".into(), path: "/x".into(), reason: "é".repeat(2000) };
    let output = DetachOutput {
        volumes: vec![Detached { serial: "s".into(), unchanged: true }],
        interrupted: vec![holder(); 300],
        left_behind: vec![left],
    };
    let reply: wire::DetachResponse = read(Rpc::Detach, &Output::Detached(output));
    let detached = wire::Detached { serial: "s".into(), unchanged: true, ..Default::default() };
    assert_eq!((reply.detached, reply.stages), (vec![detached], stages()));
    assert_eq!(reply.holders, vec![wire_holder(); MOST_HOLDERS]);
    let [left] = &reply.left_behind[..] else { panic!("{:?}", reply.left_behind) };
    assert_eq!((left.serial.as_str(), left.path.as_str()), ("s", "/x"));
    assert!(left.reason.starts_with('é') && left.reason.len() < LONGEST_MESSAGE + 4);
}

#[test]
fn unplug() {
    let step = |bytes: &[u8]| wire::UnplugResponse::parse_from_bytes(bytes).unwrap().step.unwrap();
    let wire::unplug_response::Step::Released(reply) = step(&released(&["s", "t"])) else {
        panic!("another step")
    };
    assert_eq!(reply.serials, ["s", "t"]);

    let volumes = vec![Detached { serial: "s".into(), unchanged: true }];
    let (interrupted, left_behind) = (Vec::new(), Vec::new());
    let output = Output::Detached(DetachOutput { volumes, interrupted, left_behind });
    let detached = encoded(Rpc::Detach, Ok(&output), &STAGES);
    let expected = wire::DetachResponse::parse_from_bytes(&detached).unwrap();
    assert_eq!(step(&unplugged(&detached)), wire::unplug_response::Step::Detached(expected));
}

#[test]
fn inspect() {
    let device_at = ScsiDevice { host: 2, address: ScsiAddress { target: 0, lun: 1 } };
    let stats = DiskStats {
        reads: 1,
        read_bytes: 2,
        read_ms: 3,
        writes: 4,
        written_bytes: 5,
        write_ms: 6,
        discards: 7,
        flushes: 8,
        in_flight: 9,
        errors: 10,
    };
    let space = Space {
        bytes: 1,
        bytes_free: 2,
        bytes_available: 3,
        inodes: 4,
        inodes_free: 5,
        read_only: true,
    };
    let inspected = Inspected {
        file_system: Some((Kind::Xfs, space)),
        serial: "s".into(),
        disk: Some(BlockDevice { device: device_at, name: "sda".into(), number: NUMBER }),
        size: 1024,
        read_only: true,
        container: ContainerStatus::Running,
        container_started: 5,
        node_present: true,
        allowed: true,
        filter: Some(cgroup::Mode::V1),
        leftovers: vec!["/dev/x".into()],
        stats: Some(stats),
        holders: vec![holder()],
        unknown: Some("why".into()),
        holders_unknown: Some("why not".into()),
    };
    let expected = wire::Inspected {
        serial: "s".into(),
        disk_present: true,
        guest_device: "sda".into(),
        device: device(),
        size: 1024,
        read_only: true,
        container_running: true,
        node_present: true,
        allowed: true,
        filter: wire::FilterMode::FILTER_MODE_V1.into(),
        leftovers: vec!["/dev/x".into()],
        stats: Some(wire::BlockStats {
            reads: 1,
            read_bytes: 2,
            read_ms: 3,
            writes: 4,
            written_bytes: 5,
            write_ms: 6,
            discards: 7,
            flushes: 8,
            in_flight: 9,
            errors: 10,
            ..Default::default()
        })
        .into(),
        holders: vec![wire_holder()],
        container_started: 5,
        container_status: wire::ContainerStatus::CONTAINER_STATUS_RUNNING.into(),
        unknown: "why".into(),
        holders_unknown: "why not".into(),
        file_system: Some(wire::FileSystemState {
            type_: "xfs".into(),
            bytes: 1,
            bytes_free: 2,
            bytes_available: 3,
            inodes: 4,
            inodes_free: 5,
            read_only: true,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let reply: wire::InspectResponse = read(Rpc::Inspect, &Output::Inspected(vec![inspected]));
    assert_eq!(reply.inspected, [expected]);
}

fn probed() -> Probed {
    let parent = ParentState {
        file_system: "tmpfs".into(),
        nodev: true,
        read_only: true,
        is_missing: false,
        way: Err(Unsupported::NoCgroup.into()),
    };
    let taken = Some(("block device 8:16".to_owned(), Some(NUMBER)));
    let path = PathState { path: "/x".into(), parent: Some(parent), taken };
    let container = ProbedContainer {
        user_namespace: true,
        filter: cgroup::Mode::Bpf,
        programs: vec![1, 300],
        filter_refused: "why".into(),
        paths: vec![path],
    };
    let guest = Guest {
        hosts: vec![ScsiHost { number: 2, controller: "0000:00:01.0".into() }],
        scan_mode: "async".into(),
        kernel: Kernel { release: "6.1".into(), missing: vec!["kcmp"] },
    };
    Probed { guest, container: Some(container) }
}

#[test]
fn probe() {
    let reply: wire::ProbeResponse = read(Rpc::Probe, &Output::Probed(probed()));
    assert_eq!((reply.api_level, reply.scan_mode.as_str()), (API_LEVEL, "async"));
    assert_eq!(reply.capabilities, CAPABILITIES);
    assert_eq!(reply.plugin_version, env!("CARGO_PKG_VERSION"));
    let host =
        wire::ScsiHost { number: 2, controller: "0000:00:01.0".into(), ..Default::default() };
    assert_eq!(reply.scsi_hosts, [host]);
    assert_eq!(
        (reply.kernel.release.as_str(), &reply.kernel.missing[..]),
        ("6.1", &["kcmp".to_owned()][..])
    );
    let path = wire::PathState {
        path: "/x".into(),
        use_: wire::PathUse::PATH_USE_TAKEN.into(),
        taken_by: "block device 8:16".into(),
        device: device(),
        file_system: "tmpfs".into(),
        nodev: true,
        read_only: true,
        refused: BoxedError::from(Unsupported::NoCgroup).message(),
        ..Default::default()
    };
    let filter = wire::FilterState {
        mode: wire::FilterMode::FILTER_MODE_BPF.into(),
        programs: vec![1, 300],
        refused: "why".into(),
        ..Default::default()
    };
    let expected = wire::ContainerState {
        user_namespace: true,
        filter: Some(filter).into(),
        paths: vec![path],
        status: wire::ContainerStatus::CONTAINER_STATUS_RUNNING.into(),
        ..Default::default()
    };
    assert_eq!(reply.container.unwrap(), expected);
}

#[test]
fn steps_of_a_plug() {
    fn read(said: &Said<'_>) -> wire::PlugResponse {
        wire::PlugResponse::parse_from_bytes(&super::said(said, &STAGES)).unwrap()
    }
    let expected: wire::ProbeResponse = super::tests::read(Rpc::Probe, &Output::Probed(probed()));
    assert_eq!(*read(&Said::Ready(&probed())).ready(), expected);
    let volumes = [attached_volume()];
    let expected = wire::AttachResponse {
        attached: vec![wire_attached()],
        stages: stages(),
        ..Default::default()
    };
    assert_eq!(*read(&Said::Prepared(&volumes)).prepared(), expected);
    assert_eq!(*read(&Said::Attached(&volumes)).attached(), expected);
}

#[test]
fn a_failure_is_where_the_host_looks_for_it() {
    let mut failed = Failed::from(Error::Busy { device: "sda".into(), holders: vec![holder()] });
    failed.serial = Some("s".into());
    failed.partial = true;
    let bytes = |rpc| encoded(rpc, Err(&failed), &STAGES);
    let reply = wire::DetachResponse::parse_from_bytes(&bytes(Rpc::Detach)).unwrap();
    assert_eq!((reply.holders, reply.stages), (vec![wire_holder()], stages()));
    let failures = [
        reply.failure,
        wire::ProbeResponse::parse_from_bytes(&bytes(Rpc::Probe)).unwrap().failure,
        wire::AttachResponse::parse_from_bytes(&bytes(Rpc::Attach)).unwrap().failure,
        wire::InspectResponse::parse_from_bytes(&bytes(Rpc::Inspect)).unwrap().failure,
        wire::ResizeResponse::parse_from_bytes(&bytes(Rpc::Resize)).unwrap().failure,
        wire::PlugResponse::parse_from_bytes(&bytes(Rpc::Plug)).unwrap().take_attached().failure,
    ];
    for failure in failures {
        assert_eq!(failure.reason, Reason::REASON_BUSY.into());
        assert_eq!((failure.serial.as_str(), failure.undone), ("s", false));
        assert!(failure.message.ends_with("repeat the request to continue"), "{failure:?}");
    }
    let source = crate::ContainerError::Paused;
    let paused = Failed::from(Error::Container { id: "c1".into(), source });
    let reply = encoded(Rpc::Probe, Err(&paused), &[]);
    let reply = wire::ProbeResponse::parse_from_bytes(&reply).unwrap();
    assert_eq!(reply.container.status, wire::ContainerStatus::CONTAINER_STATUS_PAUSED.into());
}
