//! `repair` against a real QEMU: what is completed, what is rolled back, what is left alone.
//! Foreign objects are never touched.

use crate::common::{
    Host,
    fake_agent::OnAttach,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::Reason;
use host_trigger::{
    ops::{
        recovery::{Action, StateAfter},
        volume::{Cause, State},
    },
    output::{
        envelope::Outcome,
        repair_report::{Found, RepairedVolume, UnusedDescriptor},
    },
    qemu::record::PREFIX,
};
use rstest::rstest;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Returns what is reported of the only volume.
fn only(volumes: &[RepairedVolume]) -> (Found, Action, StateAfter) {
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    (volumes[0].found, volumes[0].action, volumes[0].state_after)
}

/// Adds descriptor sets, block nodes and devices of another client, some with names much like ours.
async fn add_foreign_objects(host: &mut Host, image: &Image) {
    let file = json!({"driver": "file", "filename": image.path()});
    for name in ["theirs", "ecrblk-theirs-n"] {
        let node = json!({"driver": "raw", "node-name": name, "read-only": true, "file": file});
        host.execute("blockdev-add", node).await;
    }
    for (lun, id, node) in [(1, "theirs0", "theirs"), (2, "ecrblk-theirs", "ecrblk-theirs-n")] {
        let device = json!({"driver": "scsi-hd", "id": id, "drive": node, "bus": "scsi0.0", "scsi-id": 1, "lun": lun});
        host.execute("device_add", device).await;
    }
    for opaque in [
        "serial0-source",
        "kata:{}",
        "ecrblk2:{}",
        "ecrblk1:{\"v\":2,\"id\":\"0123456789abcdef\"}",
        "",
    ] {
        host.add_fd(opaque, None).await;
    }
}

#[tokio::test]
async fn foreign_objects_are_never_touched() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    add_foreign_objects(&mut host, &image).await;
    let foreign = host.snapshot().await;
    let nothing = host.verb("repair", &[]).await.repaired();
    assert_eq!((nothing.result, nothing.body.volumes.len()), (Outcome::Unchanged, 0));
    assert_eq!(host.snapshot().await, foreign);

    // The same with a volume of ours beside them.
    let ours = Image::of(MIB);
    let id = host.plug(ours.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    host.agent.attached.lock().unwrap().clear();
    let repaired = host.verb("repair", &[]).await.repaired();
    assert_eq!(
        only(&repaired.body.volumes),
        (Found::Volume(State::Incomplete), Action::Completed, StateAfter::Gone)
    );
    assert_eq!(repaired.body.volumes[0].id, id);
    assert_eq!(host.snapshot().await, foreign);
}

#[tokio::test]
async fn an_intact_volume_is_kept_and_only_inspected() {
    let mut host = Host::boot().await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    host.plug(image.path(), "/dev/xvdb", &["--read-only"]).await.report();
    let before = host.snapshot().await;
    let repaired = host.verb("repair", &[]).await.repaired();
    assert_eq!((repaired.result, repaired.error), (Outcome::Unchanged, None));
    assert_eq!(repaired.body.volumes.len(), 2);
    assert!(
        repaired
            .body
            .volumes
            .iter()
            .all(|kept| (kept.action, kept.state_after) == (Action::Kept, StateAfter::Attached))
    );
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.detached.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_volume_of_a_container_that_is_gone_is_removed() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    let would = host.verb("repair", &["--dry-run"]).await.repaired();
    assert_eq!((would.result, would.dry_run), (Outcome::Repaired, true));
    assert_eq!(
        only(&would.body.volumes),
        (
            Found::Volume(State::Stale { cause: Cause::ContainerGone }),
            Action::RolledBack,
            StateAfter::Gone
        )
    );
    assert!(device.is_claimed() && host.agent.detached.lock().unwrap().is_empty());
    let repaired = host.verb("repair", &[]).await.repaired();
    assert_eq!(repaired.result, Outcome::Repaired);
    assert_eq!(
        only(&repaired.body.volumes),
        (
            Found::Volume(State::Stale { cause: Cause::ContainerGone }),
            Action::RolledBack,
            StateAfter::Gone
        )
    );
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
}

/// The container, or another process in the guest, has removed a part: repair restores it.
#[tokio::test]
async fn a_device_node_that_the_container_lost_is_made_again() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.agent.lost_nodes.lock().unwrap().push("/dev/xvda".into());
    assert_eq!(host.verb("list", &[]).await.listing().body.volumes[0].state, State::Incomplete);
    let repaired = host.verb("repair", &[]).await.repaired();
    assert_eq!(
        only(&repaired.body.volumes),
        (Found::Volume(State::Incomplete), Action::Completed, StateAfter::Attached)
    );
    assert_eq!(host.verb("list", &[]).await.listing().body.volumes[0].state, State::Attached);
    assert!(host.agent.detached.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_volume_that_the_guest_refuses_to_complete_is_rolled_back() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.agent.lost_nodes.lock().unwrap().push("/dev/xvda".into());
    host.agent.set_on_attach(OnAttach::Fails { reason: Reason::REASON_PATH_TAKEN, undone: true });
    let repaired = host.verb("repair", &[]).await.repaired();
    assert_eq!(
        only(&repaired.body.volumes),
        (Found::Volume(State::Incomplete), Action::RolledBack, StateAfter::Gone)
    );
    assert!(repaired.body.volumes[0].detail.contains("PATH_TAKEN"), "{repaired:?}");
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_volume_in_use_stays_and_is_reported() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    *host.agent.detach_failure.lock().unwrap() = Some((Reason::REASON_BUSY, true));
    let before = host.snapshot().await;
    let ran = host.verb("repair", &[]).await;
    let repaired = ran.repaired();
    ran.assert_fails("incomplete", 8);
    assert_eq!(
        only(&repaired.body.volumes),
        (
            Found::Volume(State::Stale { cause: Cause::ContainerGone }),
            Action::Failed,
            StateAfter::Unknown
        )
    );
    assert!(repaired.body.volumes[0].detail.contains("BUSY"), "{repaired:?}");
    assert_eq!((repaired.result, host.snapshot().await), (Outcome::Error, before));
}

/// Without the guest, repair removes only what the guest cannot have a part of.
#[rstest]
#[case::unreachable(&["--agent", "unix:///nonexistent/agent.sock"])]
#[case::refuses(&[])]
#[tokio::test]
async fn without_the_guest_only_what_is_safe_is_done(#[case] more: &[&str]) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let plugged = host.snapshot().await;
    let orphan = json!({"v": 1, "id": "0123456789abcdef", "container": "c1", "path": "/dev/xvdb", "source": "/dev/x",
        "size": 512, "access": "rw", "mode": 432, "tool": "0", "run": "r"});
    host.add_fd(&format!("{PREFIX}{orphan}"), None).await;
    *host.agent.inspect_failure.lock().unwrap() = Some(Reason::REASON_DENIED);
    let ran = host.verb("repair", more).await;
    ran.assert_fails("incomplete", 8);
    let repaired = ran.repaired();
    let did: Vec<_> =
        repaired.body.volumes.iter().map(|volume| (volume.place.path(), volume.action)).collect();
    let mut expected = vec![("/dev/xvda", Action::Failed), ("/dev/xvdb", Action::RolledBack)];
    expected.sort_by_key(|(path, _)| did.iter().position(|(at, _)| at == path));
    assert_eq!(did, expected);
    assert!(repaired.error.unwrap().message.contains("the guest"));
    assert_eq!(host.snapshot().await, plugged);
    assert!(host.agent.detached.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_disk_without_a_record_is_left_alone_and_its_remedy_is_reported() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let sets = host.snapshot().await["query-fdsets"].clone();
    host.execute("remove-fd", json!({"fdset-id": sets[0]["fdset-id"]})).await;
    let before = host.snapshot().await;
    let ran = host.verb("repair", &[]).await;
    ran.assert_fails("incomplete", 8);
    assert!(ran.repaired().body.volumes[0].detail.contains("plug the volume again"), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
    // The remedy that the report names.
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(
        host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report().result,
        Outcome::Detached
    );
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_node_without_device_and_record_is_removed() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    let file = json!({"driver": "file", "filename": image.path()});
    let node = json!({"driver": "raw", "node-name": "ecrblk-0123456789abcdef-n", "file": file});
    host.execute("blockdev-add", node).await;
    let repaired = host.verb("repair", &[]).await.repaired();
    assert_eq!(
        only(&repaired.body.volumes),
        (Found::Volume(State::Incomplete), Action::RolledBack, StateAfter::Gone)
    );
    assert_eq!(host.snapshot().await, clean);
}

/// A second descriptor set of a plugged volume, a commit record that was replaced, a commit record
/// without an intent record.
#[tokio::test]
async fn unused_descriptors_are_removed() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    let plugged = host.snapshot().await;
    let set = plugged["query-fdsets"][0]["fdset-id"].as_u64();
    let opaques: Vec<String> = plugged["query-fdsets"][0]["fds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fd| fd["opaque"].as_str().unwrap().to_owned())
        .collect();
    let with = |key: &str| opaques.iter().find(|text| text.contains(key)).unwrap().clone();
    let (intent, commit) = (with("\"run\""), with("\"committed\""));
    host.add_fd(&intent.replace("\"run\":\"", "\"run\":\"x"), None).await;
    host.add_fd(&commit, None).await;
    let newer = commit.replace("\"guest_device\":\"", "\"guest_device\":\"newer");
    host.add_fd(&newer, set).await;
    let before = host.snapshot().await;
    assert_eq!(host.verb("repair", &["--dry-run"]).await.repaired().result, Outcome::Repaired);
    assert_eq!(host.snapshot().await, before);
    let repaired = host.verb("repair", &[]).await.repaired();
    let unused = Found::Descriptor(UnusedDescriptor::UnusedDescriptor);
    let found: Vec<_> = repaired
        .body
        .volumes
        .iter()
        .map(|volume| (volume.id.as_str(), volume.found, volume.action))
        .collect();
    let attached = (id.as_str(), Found::Volume(State::Attached), Action::Kept);
    let surplus = (id.as_str(), unused, Action::RolledBack);
    assert_eq!(found, [attached, surplus, surplus, ("", unused, Action::RolledBack)]);
    let after = host.snapshot().await;
    // Of the two commit records in the set the newer one takes precedence.
    let count = |snapshot: &Value| snapshot["query-fdsets"][0]["fds"].as_array().unwrap().len();
    assert_eq!(
        (after["query-fdsets"].as_array().unwrap().len(), count(&after), count(&plugged)),
        (1, 2, 2)
    );
    assert!(after.to_string().contains("newer"), "{after}");
    assert_eq!(host.verb("list", &[]).await.listing().body.volumes[0].state, State::Attached);
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Outcome::Unchanged);
}

#[tokio::test]
async fn the_text_output_is_lines() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(host.path("")).args(["block-volume", "repair", "--sandbox", "s1"]);
    let ran = crate::common::run(&mut command).await;
    let line = format!(
        "{id} at /dev/xvda in container c1: stale: container gone: rolled back, gone (its container is gone)\n"
    );
    assert_eq!((ran.exit_code, ran.stdout), (Some(0), line));
    let ran = crate::common::run(&mut command).await;
    assert_eq!((ran.exit_code, ran.stdout.as_str()), (Some(0), "there are no volumes\n"));
}
