//! `hot-unplug --force --without-guest` against a real QEMU: the host gets its volume back whatever
//! the guest does, what the guest may still have is recorded in QEMU, and `repair` ends it.

use std::sync::atomic::Ordering;

use crate::common::{
    Host,
    volume::{Image, Loop},
};
use host_trigger::{
    ops::{
        recovery::{Action, StateAfter},
        volume::State,
    },
    output::{envelope::Outcome, repair_report::Found},
    qemu::record::Record,
};
use rstest::rstest;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];
const WITHOUT_GUEST: [&str; 2] = ["--force", "--without-guest"];
const UNREACHABLE: [&str; 2] = ["--agent", "unix:///nonexistent/agent.sock"];

async fn take(host: &Host, more: &[&str]) -> crate::common::RunOutput {
    host.verb("hot-unplug", &[&WITHOUT_GUEST[..], more].concat()).await
}

/// Everything in QEMU, its objects as well.
async fn everything(host: &mut Host) -> Value {
    let mut all = host.snapshot().await;
    all["objects"] = host.query("qom-list", json!({"path": "/objects"})).await;
    all
}

fn states(output: &crate::common::RunOutput) -> Vec<State> {
    output.listing().body.volumes.iter().map(|listed| listed.state).collect()
}

#[rstest]
#[tokio::test]
async fn the_host_gets_its_volume_back_and_repair_ends_it(
    #[values("repair", "hot-unplug")] remedy: &str,
) {
    let mut host = Host::boot().await;
    let clean = everything(&mut host).await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    let plugged = host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let was = &plugged.body.volumes[0];
    let kept = host.plug(image.path(), "/dev/xvdb", &[]).await.report();

    let before = host.agent.requests.load(Ordering::Relaxed);
    let would = take(&host, &[&C1[..], &["--dry-run"]].concat()).await.report();
    assert_eq!((would.result, would.dry_run), (Outcome::Abandoned, true));
    assert!(device.is_claimed());
    let taken = take(&host, &C1).await.report();
    assert_eq!((taken.result, &taken.body.lost), (Outcome::Abandoned, &would.body.lost));
    let lost = taken.body.lost.join("\n");
    for part in ["requests in flight", "/dev/xvda", "container c1", "8:0", &was.scsi.controller] {
        assert!(lost.contains(part), "{part}: {lost}");
    }
    assert!(!device.is_claimed());
    assert_eq!(host.agent.requests.load(Ordering::Relaxed), before, "the guest was contacted");

    // It is known, and QEMU has no writable node of it.
    let again = take(&host, &C1).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    let listing = host.verb("list", &[]).await.listing();
    let listed = &listing.body.volumes[0];
    assert_eq!((listed.state, &listed.volume.id), (State::Abandoned, &was.id));
    assert_eq!(
        (&listed.volume.scsi, &listed.volume.device_number),
        (&was.scsi, &was.device_number)
    );
    assert_eq!(listing.body.volumes[1].state, State::Attached);
    let node = format!("ecrblk-{}-a", was.id);
    let nodes = host.snapshot().await["query-named-block-nodes"].clone();
    let node = nodes.as_array().unwrap().iter().find(|it| it["node-name"] == *node).unwrap();
    assert_eq!((&node["ro"], &node["image"]["virtual-size"]), (&json!(true), &json!(0)));
    host.verb("resize", &C1).await.assert_fails("abandoned_volume", 4);
    host.verb("throttle", &[&C1[..], &["--iops", "1"]].concat())
        .await
        .assert_fails("abandoned_volume", 4);

    // Its number could be given to any new disk, and its old node would open it.
    for (volume, path) in [(device.path(), "/dev/xvda"), (Image::of(MIB).path(), "/dev/xvdc")] {
        let refused = host.plug(volume, path, &[]).await;
        refused.assert_fails("abandoned_volume", 4);
        let dry = host.plug(volume, path, &["--dry-run"]).await;
        dry.assert_fails("abandoned_volume", 4);
    }
    let unchanged = host.plug(image.path(), "/dev/xvdb", &[]).await.report();
    assert_eq!(unchanged.result, Outcome::Unchanged);

    if remedy == "repair" {
        host.verb("repair", &UNREACHABLE).await.assert_fails("incomplete", 8);
        assert_eq!(states(&host.verb("list", &C1[..2]).await), [State::Abandoned, State::Attached]);
        let would = host.verb("repair", &["--dry-run"]).await.repaired();
        assert_eq!(would.body.volumes.len(), 2);
        let repaired = host.verb("repair", &[]).await.repaired();
        let of = repaired.body.volumes.iter().find(|volume| volume.id == was.id).unwrap();
        assert_eq!(
            (of.found, of.action, of.state_after),
            (Found::Volume(State::Abandoned), Action::Completed, StateAfter::Gone)
        );
    } else {
        assert_eq!(host.verb("hot-unplug", &C1).await.report().result, Outcome::Detached);
    }
    assert_eq!(*host.agent.detached.lock().unwrap(), std::slice::from_ref(&was.id));
    let detached = host.agent.last_detachments.lock().unwrap().clone();
    let address = detached[0].attachment.address.clone().unwrap();
    assert_eq!((address.target, address.lun), (was.scsi.target, was.scsi.lun));
    assert_eq!(detached[0].outcome.device.as_ref().unwrap().major, 8);
    host.verb("hot-unplug", &["--volume", &kept.body.volumes[0].id]).await.report();
    assert_eq!(everything(&mut host).await, clean);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_guest_that_cannot_be_reached_does_not_matter() {
    let host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    host.agent.stop().await;
    let taken = take(&host, &C1).await.report();
    assert_eq!(taken.result, Outcome::Abandoned);
    assert!(!device.is_claimed());
    // An abandoned volume is one also where the guest cannot tell.
    assert_eq!(states(&host.verb("list", &[]).await), [State::Abandoned]);
    host.verb("repair", &[]).await.assert_fails("incomplete", 8);
    host.agent.start().await;
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Outcome::Repaired);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn it_has_to_be_confirmed() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    let id = host.plug(device.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    let before = everything(&mut host).await;
    let refused = host.verb("hot-unplug", &[&C1[..], &["--without-guest"]].concat()).await;
    refused.assert_fails("usage", 2);
    assert!(refused.failure().message.contains("is lost: confirm it with --force"));
    let path = ["--container", "c1", "--device-path", "/dev/xvdz"];
    take(&host, &path).await.assert_fails("volume_not_found", 3);
    let none = take(&host, &["--volume", "0123456789abcdef"]).await.report();
    assert_eq!((none.result, none.body.volumes.len()), (Outcome::Unchanged, 0));
    assert_eq!(everything(&mut host).await, before);
    assert_eq!(take(&host, &["--volume", &id]).await.report().result, Outcome::Abandoned);
}

/// All containers of a shared volume lose it.
#[tokio::test]
async fn a_shared_volume_is_taken_as_a_whole() {
    let mut host = Host::boot().await;
    let clean = everything(&mut host).await;
    let device = Loop::of(MIB);
    let id = host.plug(device.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    let second = ["--sandbox", "s1", "--container", "c2", "--shared"];
    host.plug(device.path(), "/dev/xvdb", &second).await.report();
    let before = everything(&mut host).await;
    for one in [&C1[..], &["--volume", &id, "--container", "c2"]] {
        let refused = take(&host, one).await;
        refused.assert_fails("whole_volume", 2);
        assert!(refused.failure().message.contains("at /dev/xvdb in container c2"), "{refused:?}");
    }
    assert_eq!(everything(&mut host).await, before);

    let taken = take(&host, &["--volume", &id]).await.report();
    assert_eq!((taken.result, taken.body.volumes.len()), (Outcome::Abandoned, 2));
    assert!(!device.is_claimed());
    assert_eq!(states(&host.verb("list", &[]).await), [State::Abandoned, State::Abandoned]);
    // One attachment is detached in the guest, and the other one still has the disk there.
    host.verb("hot-unplug", &C1).await.report();
    assert!(host.agent.last_detachments.lock().unwrap()[0].keep_disk);
    assert_eq!(states(&host.verb("list", &[]).await), [State::Abandoned]);
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Outcome::Repaired);
    assert!(!host.agent.last_detachments.lock().unwrap()[0].keep_disk);
    assert_eq!(everything(&mut host).await, clean);
}

/// A run that is killed after any step, and then the same command, `repair` or `list`.
#[cfg(feature = "fault")]
#[rstest]
#[tokio::test]
async fn an_interrupted_run_is_continued(
    #[values(
        "after-record-abandoned",
        "remove-before-device-deleted",
        "remove-after-device-del",
        "remove-after-blockdev-del",
        "after-remove"
    )]
    point: &str,
    #[values(true, false)] by_repair: bool,
) {
    let mut host = Host::boot().await;
    let clean = everything(&mut host).await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let killed = [&WITHOUT_GUEST[..], &C1].concat();
    let mut command = host.verb_command("hot-unplug", &killed);
    let killed =
        crate::common::run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    if !by_repair {
        take(&host, &C1).await.report();
        assert!(!device.is_claimed());
        assert_eq!(states(&host.verb("list", &[]).await), [State::Abandoned]);
    }
    host.verb("repair", &[]).await.repaired();
    host.verb("repair", &[]).await.repaired();
    let left = host.verb("list", &[]).await.listing().body.volumes;
    if point == "after-record-abandoned" && by_repair {
        // Nothing had been taken: the volume stays, and its second record has gone.
        assert_eq!(left[0].state, State::Attached);
        host.verb("hot-unplug", &C1).await.report();
    }
    assert!(!device.is_claimed());
    assert_eq!(everything(&mut host).await, clean);
}

#[tokio::test]
async fn an_interrupted_plug_is_taken_as_far_as_it_exists() {
    let mut host = Host::boot().await;
    let record = concat!(
        r#"ecrblk1:{"v":1,"id":"0123456789abcdef","container":"c1","path":"/dev/xvda","#,
        r#""source":"/dev/loop0","size":512,"access":"rw","mode":432,"tool":"0","run":"r"}"#
    );
    let clean = everything(&mut host).await;
    host.add_fd(record, None).await;
    let taken = take(&host, &C1).await.report();
    assert_eq!((taken.result, taken.body.lost.len()), (Outcome::Abandoned, 0));
    // The guest cannot have anything of it, so nothing is kept.
    assert_eq!(everything(&mut host).await, clean);
}

#[tokio::test]
async fn foreign_records_are_not_taken_for_abandoned_volumes() {
    let mut host = Host::boot().await;
    for text in [r#"ecrblk1:{"v":2,"abandoned":{}}"#, r#"ecrblk1:{"v":1,"abandoned":{}}"#] {
        assert_eq!(Record::from_opaque(text), None);
        host.add_fd(text, None).await;
    }
    assert_eq!(states(&host.verb("list", &[]).await), []);
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
}
