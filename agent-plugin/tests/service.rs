//! The service on a ttrpc server, over a Unix socket, with a minimal agent. Needs root and
//! util-linux.

mod container;
mod guest;

use agent_plugin::api::block_volume as wire;
use container::start;
use guest::{Guest, attach, attachment, context, detach, guest, reason};
use protobuf::EnumOrUnknown;
use rstest::rstest;
use serde_json::json;
use wire::Reason;

#[tokio::test]
async fn probe_reports_the_guests_capabilities() {
    let guest = guest(None, false).await;
    let reply = guest.client.probe(context(), &wire::ProbeRequest::default()).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_UNSPECIFIED);
    assert_eq!((reply.api_level, reply.plugin_version.as_str()), (1, env!("CARGO_PKG_VERSION")));
    let expected = ["attach", "detach", "holders", "inspect", "resize", "plug", "unplug", "mount"];
    assert_eq!(reply.capabilities, expected);
    assert!(reply.container.is_none());
    let asked = guest.agent.asked.lock().unwrap().clone();
    assert_eq!(
        asked,
        [(
            "ProbeBlockVolumeRequest".to_owned(),
            json!({ "container_id": "", "paths": [], "mount_paths": [] })
        )]
    );
}

#[tokio::test]
async fn probe_reports_what_exists_at_a_path() {
    let guest =
        guest(Some(start("mknod $root/dev/x b 8 16; ln -s /proc/self/root $root/dev/evil")), false)
            .await;
    let paths =
        ["/dev/new", "/dev/x", "/none/x", "/dev/evil/x", "/etc/passwd"].map(str::to_owned).to_vec();
    let request = wire::ProbeRequest { container_id: "c1".into(), paths, ..Default::default() };
    let reply = guest.client.probe(context(), &request).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_UNSPECIFIED, "{:?}", reply.failure);
    let container = reply.container.unwrap();
    assert!(!container.user_namespace && container.filter.is_some());
    let states: Vec<_> = container.paths.iter().map(|path| path.use_.unwrap()).collect();
    use wire::PathUse::{PATH_USE_FREE, PATH_USE_PARENT_MISSING, PATH_USE_TAKEN};
    let expected = [
        PATH_USE_FREE,
        PATH_USE_TAKEN,
        PATH_USE_PARENT_MISSING,
        PATH_USE_PARENT_MISSING,
        PATH_USE_TAKEN,
    ];
    assert_eq!(states, expected);
    assert_eq!(container.paths[0].file_system, "tmpfs");
    assert_eq!(container.paths[1].taken_by, "block device 8:16");
    assert_eq!(container.paths[1].device.minor, 16);
    assert_eq!(container.paths[4].taken_by, "file");
    use wire::NodeWay::{NODE_WAY_BIND, NODE_WAY_MKNOD, NODE_WAY_UNSPECIFIED};
    let ways: Vec<_> = container.paths.iter().map(|path| path.way.unwrap()).collect();
    // The root is a file system that others see, too. A missing directory can be made. A link out
    // of the container is not followed.
    assert_eq!(
        ways,
        [NODE_WAY_MKNOD, NODE_WAY_MKNOD, NODE_WAY_BIND, NODE_WAY_UNSPECIFIED, NODE_WAY_BIND]
    );
}

#[rstest]
#[case("unknown", Reason::REASON_CONTAINER_NOT_FOUND)]
#[case("created", Reason::REASON_CONTAINER_NOT_RUNNING)]
#[case("stopped", Reason::REASON_CONTAINER_NOT_RUNNING)]
#[case("paused", Reason::REASON_CONTAINER_NOT_RUNNING)]
#[case("broken", Reason::REASON_SYSTEM)]
#[tokio::test]
async fn a_container_that_cannot_be_used_has_its_reason(
    #[case] id: &str,
    #[case] expected: Reason,
) {
    let guest = guest(None, false).await;
    let reply = guest.client.attach(context(), &attach(attachment(id))).await.unwrap();
    assert_eq!(reason(&reply.failure), expected);
    assert!(reply.failure.undone && reply.attached.is_empty());
    assert!(
        reply.failure.message.starts_with(&format!("container {id}: ")),
        "{}",
        reply.failure.message
    );
    let request = wire::ProbeRequest { container_id: id.into(), ..Default::default() };
    let reply = guest.client.probe(context(), &request).await.unwrap();
    assert_eq!(reason(&reply.failure), expected);
    assert_eq!(reply.api_level, 1, "the API level is reported even if the request fails");
}

#[tokio::test]
async fn a_container_whose_process_has_just_ended_is_not_running() {
    let mut fixture = start("");
    fixture.kill();
    let guest = guest(Some(fixture), false).await;
    let request = wire::ProbeRequest {
        container_id: "c1".into(),
        paths: vec!["/dev/x".into()],
        ..Default::default()
    };
    let reply = guest.client.probe(context(), &request).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_CONTAINER_NOT_RUNNING);
    let reply = guest.client.attach(context(), &attach(attachment("c1"))).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_CONTAINER_NOT_RUNNING, "{:?}", reply.failure);
    assert!(reply.failure.undone);
}

#[tokio::test]
async fn the_policy_is_asked_for_each_method_and_can_deny_it() {
    let guest = guest(None, true).await;
    let client = &guest.client;
    let item = || attachment("c1");
    let inspect =
        wire::InspectRequest { attachments: detach(item()).detachments, ..Default::default() };
    let resize =
        wire::ResizeRequest { attachments: vec![item()], timeout_ms: 1, ..Default::default() };
    let probe = client.probe(context(), &wire::ProbeRequest::default()).await.unwrap().failure;
    let replies = [
        probe,
        client.attach(context(), &attach(item())).await.unwrap().failure,
        client.detach(context(), &detach(item())).await.unwrap().failure,
        client.inspect(context(), &inspect).await.unwrap().failure,
        client.resize(context(), &resize).await.unwrap().failure,
    ];
    for failure in &replies {
        assert_eq!(reason(failure), Reason::REASON_DENIED);
        assert_eq!(failure.message, "the agent's policy refuses this request: no rule allows it");
    }
    let asked = guest.agent.asked.lock().unwrap().clone();
    let methods: Vec<_> = asked.iter().map(|(method, _)| method.as_str()).collect();
    let expected = ["Probe", "Attach", "Detach", "Inspect", "Resize"]
        .map(|name| format!("{name}BlockVolumeRequest"));
    assert_eq!(methods, expected);
    let volume = json!({
        "container_id": "c1", "controller": null, "target": 255, "lun": 1, "serial": "0123456789abcdef",
        "size": 1 << 20, "path": "/dev/xvda", "access": "read-write", "uid": 0, "gid": 0, "mode": 0o660,
        "mount": null,
    });
    assert_eq!(asked[1].1, json!({ "attachments": [volume] }));
    assert_eq!(asked[2].1, json!({ "attachments": [volume], "force": false }));
}

#[rstest]
#[case::unknown_enum(|request: &mut wire::AttachRequest| request.attachments[0].access = EnumOrUnknown::from_i32(9))]
#[case::no_volume(|request: &mut wire::AttachRequest| request.attachments.clear())]
#[case::too_many(|request: &mut wire::AttachRequest| request.attachments = vec![attachment("c1"); 257])]
#[case::twice(|request: &mut wire::AttachRequest| request.attachments = vec![attachment("c1"); 2])]
#[case::no_time(|request: &mut wire::AttachRequest| request.timeout_ms = 0)]
#[case::no_address(|request: &mut wire::AttachRequest| request.attachments[0].address = None.into())]
#[tokio::test]
async fn a_request_out_of_bounds_reaches_neither_policy_nor_container(
    #[case] change: fn(&mut wire::AttachRequest),
) {
    let guest = guest(None, false).await;
    let mut request = attach(attachment("c1"));
    change(&mut request);
    let reply = guest.client.attach(context(), &request).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_INVALID_REQUEST);
    assert!(reply.failure.undone);
    assert!(guest.agent.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_wait_beyond_the_time_out_is_refused() {
    let guest = guest(None, false).await;
    let request = wire::DetachRequest { wait_ms: 10_001, ..detach(attachment("c1")) };
    let reply = guest.client.detach(context(), &request).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_INVALID_REQUEST);
    assert!(reply.failure.message.contains("10001"), "{reply:?}");
}

#[tokio::test]
async fn a_resize_of_a_missing_disk_is_refused_whatever_the_container() {
    let guest = guest(None, false).await;
    let mut item = attachment("unknown");
    item.controller = "0000:ff:1f.7".into();
    let mut request =
        wire::ResizeRequest { attachments: vec![item], timeout_ms: 1000, ..Default::default() };
    let reply = guest.client.resize(context(), &request).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_NO_CONTROLLER, "{:?}", reply.failure);
    assert_eq!(reply.failure.serial, "0123456789abcdef");
    assert!(reply.failure.undone && reply.resized.is_empty());
    let stages: Vec<_> = reply.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(stages, ["uevent-socket"]);

    request.attachments[0].size = 513;
    let reply = guest.client.resize(context(), &request).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_INVALID_REQUEST);
    assert_eq!(
        guest.agent.asked.lock().unwrap().len(),
        1,
        "the policy is asked only about valid requests"
    );
}

#[rstest]
#[case("c1")]
#[case("stopped")]
#[case("unknown")]
#[tokio::test]
async fn a_detach_of_a_missing_volume_changes_nothing(#[case] id: &str) {
    let guest = guest(Some(start("")), false).await;
    let reply = guest.client.detach(context(), &detach(attachment(id))).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_UNSPECIFIED, "{:?}", reply.failure);
    assert_eq!(reply.detached.len(), 1);
    assert!(reply.detached[0].unchanged);
    let stages: Vec<_> = reply.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(
        stages,
        ["lookup", "release", "unlink", "revoke", "flush", "check", "quiesce", "delete"]
    );
}

#[tokio::test]
async fn a_detach_cancels_an_attach_that_the_policy_still_thinks_about() {
    let guest = guest(Some(start("")), false).await;
    guest.agent.attach.forget_permits(100);
    let (client, request) = (guest.client.clone(), attach(attachment("c1")));
    let attaching = tokio::spawn(async move { client.attach(context(), &request).await.unwrap() });
    while guest.agent.asked.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let reply = guest.client.detach(context(), &detach(attachment("c1"))).await.unwrap();
    assert!(reply.failure.is_none() && reply.detached[0].unchanged, "{reply:?}");
    guest.agent.attach.add_permits(1);
    let reply = attaching.await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_CANCELLED);
    assert!(reply.failure.undone);
}

#[tokio::test]
async fn a_container_that_the_agent_cannot_reach_does_not_end_a_forced_detach() {
    let guest = guest(None, false).await;
    let mut request = detach(attachment("broken"));
    let reply = guest.client.detach(context(), &request).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_SYSTEM);
    request.force = true;
    let reply = guest.client.detach(context(), &request).await.unwrap();
    assert!(reply.failure.is_none() && reply.detached.len() == 1, "{reply:?}");
    let [left] = reply.left_behind.as_slice() else { panic!("{reply:?}") };
    assert_eq!((left.serial.as_str(), left.path.as_str()), ("0123456789abcdef", "/dev/xvda"));
    assert!(left.reason.ends_with("pidfd_open: EMFILE"), "{}", left.reason);
}

#[tokio::test]
async fn a_file_system_that_never_answers_does_not_end_a_detach() {
    let hang = "mkdir $root/dev/hang; exec 5<>/dev/fuse
        mount -i -t fuse -o fd=5,rootmode=40000,user_id=0,group_id=0 hang $root/dev/hang";
    let guest = guest(Some(start(hang)), false).await;
    let mut request = detach(attachment("c1"));
    request.detachments[0].attachment.as_mut().unwrap().path = "/dev/hang/deeper/x".into();
    request.timeout_ms = 2_000;
    let reply = guest.client.detach(context(), &request).await.unwrap();
    assert!(reply.failure.is_none() && reply.detached.len() == 1, "{reply:?}");
    let [left] = reply.left_behind.as_slice() else { panic!("{reply:?}") };
    assert!(left.reason.contains("timed out waiting for a file system of container c1"), "{left}");
    // The file system ends, and with it the thread that waits for it.
    guest.agent.container.lock().unwrap().as_mut().unwrap().kill();
}

#[tokio::test]
async fn a_detach_does_not_change_a_paused_container() {
    let guest = guest(None, false).await;
    let reply = guest.client.detach(context(), &detach(attachment("paused"))).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_CONTAINER_NOT_RUNNING);
}

#[tokio::test]
async fn a_detach_removes_the_dead_node_of_a_removed_disk() {
    let script = "mknod $root/dev/xvda b 8 240; mknod $root/dev/.ecrblk-0123456789abcdef b 8 240";
    let guest = guest(Some(start(script)), false).await;
    let list = || guest.agent.container.lock().unwrap().as_ref().unwrap().list("/dev");
    let mut request = detach(attachment("c1"));
    request.detachments[0].outcome = Some(wire::Outcome {
        device: Some(wire::DeviceNumber { major: 8, minor: 240, ..Default::default() }).into(),
        node: wire::NodeWay::NODE_WAY_MKNOD.into(),
        filter: wire::FilterMode::FILTER_MODE_V1.into(),
        allowed_before: true,
        ..Default::default()
    })
    .into();
    let reply = guest.client.detach(context(), &request).await.unwrap();
    assert!(reply.failure.is_none() && !reply.detached[0].unchanged, "{reply:?}");
    assert_eq!(list(), ["sub"]);
    let reply = guest.client.detach(context(), &request).await.unwrap();
    assert!(reply.detached[0].unchanged);
}

#[tokio::test]
async fn inspect_reports_leftovers() {
    let script = "mknod $root/dev/.ecrblk-0123456789abcdef b 8 240";
    let guest = guest(Some(start(script)), false).await;
    let request = wire::InspectRequest {
        attachments: detach(attachment("c1")).detachments,
        ..Default::default()
    };
    let reply = guest.client.inspect(context(), &request).await.unwrap();
    assert!(reply.failure.is_none(), "{reply:?}");
    let inspected = &reply.inspected[0];
    assert!(inspected.container_running && !inspected.disk_present && !inspected.node_present);
    assert_eq!(inspected.leftovers, ["/dev/.ecrblk-0123456789abcdef"]);
    let request = wire::InspectRequest {
        attachments: detach(attachment("stopped")).detachments,
        ..Default::default()
    };
    let reply = guest.client.inspect(context(), &request).await.unwrap();
    assert!(!reply.inspected[0].container_running && reply.failure.is_none());
}

#[tokio::test]
async fn a_guest_without_the_controller_reports_it() {
    let guest = guest(Some(start("")), false).await;
    let mut item = attachment("c1");
    item.controller = "0000:ff:1f.7".into();
    let reply = guest.client.attach(context(), &attach(item)).await.unwrap();
    assert_eq!(reason(&reply.failure), Reason::REASON_NO_CONTROLLER, "{:?}", reply.failure);
    assert!(reply.failure.undone && reply.failure.message.contains("0000:ff:1f.7"));
    assert_eq!(reply.failure.serial, "0123456789abcdef");
}

/// Inspects volumes at these paths of these containers.
async fn inspect(guest: &Guest, at: &[(&str, &str)]) -> Vec<wire::Inspected> {
    let subject = |(lun, (container, path)): (u32, &(&str, &str))| {
        let address = wire::ScsiAddress { target: 255, lun, ..Default::default() };
        let attachment = wire::Attachment {
            path: (*path).into(),
            serial: format!("{lun:016x}"),
            address: Some(address).into(),
            ..attachment(container)
        };
        wire::Detachment { attachment: Some(attachment).into(), ..Default::default() }
    };
    let attachments = (1..).zip(at).map(subject).collect();
    let request = wire::InspectRequest { attachments, holders: true, ..Default::default() };
    let reply = guest.client.inspect(context(), &request).await.unwrap();
    assert!(reply.failure.is_none(), "{:?}", reply.failure);
    reply.inspected
}

#[tokio::test]
async fn inspect_says_what_the_agent_says_of_a_container() {
    use wire::ContainerStatus::*;
    let guest = guest(Some(start("true")), false).await;
    let expected = [
        ("c1", CONTAINER_STATUS_RUNNING, ""),
        ("paused", CONTAINER_STATUS_PAUSED, "container paused: the container is paused"),
        (
            "broken",
            CONTAINER_STATUS_UNREACHABLE,
            "container broken: the agent cannot reach the container: pidfd_open: EMFILE",
        ),
        ("created", CONTAINER_STATUS_CREATED, ""),
        ("stopped", CONTAINER_STATUS_STOPPED, ""),
        ("nobody", CONTAINER_STATUS_UNKNOWN_ID, ""),
    ];
    let at: Vec<_> = expected.iter().map(|(container, ..)| (*container, "/dev/xvda")).collect();
    let inspected = inspect(&guest, &at).await;
    assert_eq!(inspected.len(), expected.len());
    for (one, (container, status, unknown)) in inspected.iter().zip(expected) {
        assert_eq!(
            (one.container_status.unwrap(), one.unknown.as_str(), one.container_running),
            (status, unknown, container == "c1"),
            "{container}"
        );
        let request = wire::ProbeRequest { container_id: container.into(), ..Default::default() };
        let probed = guest.client.probe(context(), &request).await.unwrap();
        assert_eq!(probed.container.status.unwrap(), status, "{container}");
        assert_eq!(probed.failure.is_none(), container == "c1", "{container}");
    }
}

/// What cannot be told of one attachment ends neither the request nor the others.
#[tokio::test]
async fn inspect_tells_the_others_where_one_cannot_be_told() {
    let guest = guest(Some(start("")), false).await;
    let inspected = inspect(&guest, &[("no-cgroup", "/dev/xvda"), ("c1", "/dev/xvdb")]).await;
    let [lost, told] = &inspected[..] else { panic!("{inspected:?}") };
    assert!(lost.unknown.contains("no-such-cgroup"), "{:?}", lost.unknown);
    assert!(lost.container_running && told.container_running && told.unknown.is_empty());
}
