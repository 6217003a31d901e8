//! Every field of a request, as the generated code of the host writes it.

use protobuf::Message as _;

use super::*;
use crate::api::block_volume::{self as wire, plug_request::Step as Wire};

fn attachment() -> wire::Attachment {
    wire::Attachment {
        container_id: "c1".into(),
        controller: "0000:00:01.0".into(),
        address: Some(wire::ScsiAddress { target: 2, lun: 3, ..Default::default() }).into(),
        serial: "s".into(),
        size: 1 << 40,
        path: "/dev/ä".into(),
        access: wire::Access::ACCESS_READ_ONLY.into(),
        uid: 8,
        gid: u32::MAX,
        mode: 0o660,
        mount: Some(wire::Mount {
            file_system: "ext4".into(),
            options: vec!["noatime".into(), "commit=5".into()],
            fs_group: Some(wire::FsGroup {
                gid: 9,
                change: wire::FsGroupChange::FS_GROUP_CHANGE_ALWAYS.into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn assert_decoded(attachment: &Attachment<'_>) {
    let Attachment { container_id, controller, serial, path, .. } = *attachment;
    assert_eq!((container_id, controller, serial, path), ("c1", "0000:00:01.0", "s", "/dev/ä"));
    assert_eq!((attachment.address, attachment.size), (Some(Pair(2, 3)), 1 << 40));
    assert_eq!((attachment.access, attachment.mode), (2, 0o660));
    assert_eq!((attachment.uid, attachment.gid), (8, u32::MAX));
    let mount = attachment.mount.as_ref().unwrap();
    assert_eq!((mount.file_system, &mount.options[..]), ("ext4", &["noatime", "commit=5"][..]));
    let fs_group = mount.fs_group.unwrap();
    assert_eq!((fs_group.gid, fs_group.change), (9, 2));
}

#[test]
fn every_field_of_a_detach_is_decoded() {
    let outcome = wire::Outcome {
        device: Some(wire::DeviceNumber { major: 8, minor: 16, ..Default::default() }).into(),
        node: wire::NodeWay::NODE_WAY_BIND.into(),
        filter: wire::FilterMode::FILTER_MODE_BPF.into(),
        parents_made: vec!["/dev/a".into(), String::new()],
        allowed_before: true,
        container_started: 5,
        errors_before: 6,
        mounted: Some(wire::Mounted {
            file_system: "xfs".into(),
            idmapped: true,
            owners_changed: 7,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let detachment = wire::Detachment {
        attachment: Some(attachment()).into(),
        outcome: Some(outcome).into(),
        keep_disk: true,
        keep_right: true,
        ..Default::default()
    };
    let request = wire::DetachRequest {
        detachments: vec![detachment, wire::Detachment::default()],
        timeout_ms: 7,
        force: true,
        wait_ms: u64::MAX,
        ..Default::default()
    };
    let bytes = request.write_to_bytes().unwrap();
    let request = Request::decode(Rpc::Detach, &bytes).unwrap();
    let (timeout_ms, wait_ms) = (request.timeout_ms, request.wait_ms);
    assert_eq!((timeout_ms, wait_ms, request.force), (7, u64::MAX, true));
    let [first, second] = &request.volumes[..] else { panic!("{request:?}") };
    assert!(first.keep_disk && first.keep_right && !second.keep_disk);
    assert!(second.attachment.is_none() && second.outcome.is_none());
    assert_decoded(first.attachment.as_ref().unwrap());
    let outcome = first.outcome.as_ref().unwrap();
    assert_eq!((outcome.device, outcome.node, outcome.filter), (Some(Pair(8, 16)), 2, 3));
    assert_eq!((&outcome.parents_made[..], outcome.allowed_before), (&["/dev/a", ""][..], true));
    assert_eq!((outcome.container_started, outcome.errors_before), (5, 6));
    let mounted = outcome.mounted.as_ref().unwrap();
    let Mounted { file_system, idmapped, owners_changed } = *mounted;
    assert_eq!((file_system, idmapped, owners_changed), ("xfs", true, 7));
}

#[test]
fn every_field_of_the_other_requests_is_decoded() {
    let attach = wire::AttachRequest {
        attachments: vec![attachment(), attachment()],
        timeout_ms: 7,
        ..Default::default()
    };
    let bytes = attach.write_to_bytes().unwrap();
    for rpc in [Rpc::Attach, Rpc::Resize] {
        let request = Request::decode(rpc, &bytes).unwrap();
        assert_eq!((request.volumes.len(), request.timeout_ms), (2, 7));
        assert_decoded(request.volumes[1].attachment.as_ref().unwrap());
    }
    let detachment =
        wire::Detachment { attachment: Some(attachment()).into(), ..Default::default() };
    let inspect = wire::InspectRequest {
        attachments: vec![detachment],
        holders: true,
        without_stats: true,
        ..Default::default()
    };
    let bytes = inspect.write_to_bytes().unwrap();
    let request = Request::decode(Rpc::Inspect, &bytes).unwrap();
    assert!(request.holders && request.without_stats);
    assert_decoded(request.volumes[0].attachment.as_ref().unwrap());
    let probe = wire::ProbeRequest {
        container_id: "c1".into(),
        paths: vec!["/dev/a".into(), String::new()],
        mount_paths: vec!["/data".into()],
        ..Default::default()
    };
    let bytes = probe.write_to_bytes().unwrap();
    let request = Request::decode(Rpc::Probe, &bytes).unwrap();
    assert_eq!((request.container_id, &request.paths[..]), ("c1", &["/dev/a", ""][..]));
    assert_eq!(request.mount_paths, ["/data"]);
}

#[test]
fn every_step_of_a_plug_is_decoded() {
    let start = wire::AttachRequest {
        attachments: vec![attachment()],
        timeout_ms: 7,
        conversation: u64::MAX,
        ..Default::default()
    };
    let bytes = |step| {
        let step = wire::PlugRequest { step, ..Default::default() };
        step.write_to_bytes().unwrap()
    };
    let of_start = bytes(Some(Wire::Start(start)));
    let step = PlugStep::decode(&of_start).unwrap();
    let PlugStep::Start(request) = step else { panic!("{step:?}") };
    let request = Request::decode(Rpc::Plug, request).unwrap();
    assert_eq!((request.timeout_ms, request.conversation), (7, u64::MAX));
    assert_decoded(request.volumes[0].attachment.as_ref().unwrap());
    let (go, commit) =
        (bytes(Some(Wire::Go(wire::PlugGo::default()))), wire::PlugCommit::default());
    let commit = bytes(Some(Wire::Commit(commit)));
    assert_eq!(PlugStep::decode(&go), Ok(PlugStep::Go));
    assert_eq!(PlugStep::decode(&commit), Ok(PlugStep::Commit));
    assert_eq!(PlugStep::decode(&bytes(None)), Ok(PlugStep::Other));
    // A step of a later version.
    assert_eq!(PlugStep::decode(&[0x22, 0]), Ok(PlugStep::Other));
    assert_eq!(PlugStep::decode(&[0x12, 1]), Err(Malformed));
}

#[test]
fn the_number_of_a_hold_is_decoded() {
    let hold = wire::HoldRequest { conversation: 7, ..Default::default() };
    let bytes = hold.write_to_bytes().unwrap();
    assert_eq!(Request::decode(Rpc::Hold, &bytes).unwrap().conversation, 7);
}

/// As the generated code does it, for a sender that writes a message in parts.
#[test]
fn a_message_in_parts_is_merged() {
    let mut parts = wire::Detachment { keep_disk: true, ..Default::default() };
    parts.attachment = Some(wire::Attachment { size: 512, ..Default::default() }).into();
    let mut bytes = parts.write_to_bytes().unwrap();
    parts.attachment = Some(wire::Attachment { uid: 8, ..Default::default() }).into();
    bytes.extend(parts.write_to_bytes().unwrap());
    let volume = Volume::detachment(&bytes).unwrap();
    let merged = volume.attachment.unwrap();
    assert_eq!((merged.size, merged.uid, volume.keep_disk), (512, 8, true));
}
