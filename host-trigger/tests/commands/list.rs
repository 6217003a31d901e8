//! `list` and `inspect` against a real QEMU: the states. Nothing is changed. What is reported if
//! the guest cannot tell is in `unknown.rs`.

use crate::common::{
    Host,
    volume::{Image, Loop},
};
use host_trigger::{
    ops::volume::{Cause, State},
    output::envelope::Outcome,
};
use serde_json::json;

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn plugged_volumes_are_listed_and_nothing_changes() {
    let mut host = Host::boot().await;
    assert!(host.verb("list", &[]).await.listing().body.volumes.is_empty());
    let (device, image) = (Loop::of(MIB), Image::of(2 * MIB));
    let b = host.plug(image.path(), "/dev/xvdb", &["--read-only"]).await.report();
    let a = host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let other = ["--sandbox", "s1", "--container", "c2"];
    let third = Image::of(MIB);
    host.plug(third.path(), "/dev/xvda", &other).await.report();
    let before = host.snapshot().await;

    let listing = host.verb("list", &[]).await.listing();
    assert_eq!((listing.command.as_str(), listing.result), ("list", Outcome::Listed));
    let paths: Vec<_> = listing
        .body
        .volumes
        .iter()
        .map(|listed| (listed.volume.container.as_str(), listed.volume.place.path()))
        .collect();
    assert_eq!(paths, [("c1", "/dev/xvda"), ("c1", "/dev/xvdb"), ("c2", "/dev/xvda")]);
    assert!(listing.body.volumes.iter().all(|listed| listed.state == State::Attached));
    let (first, second) = (&listing.body.volumes[0], &listing.body.volumes[1]);
    assert_eq!(
        (&first.volume.id, first.volume.size, first.volume.read_only),
        (&a.body.volumes[0].id, MIB, false)
    );
    assert_eq!(
        (&first.volume.scsi, &first.volume.node),
        (&a.body.volumes[0].scsi, &a.body.volumes[0].node)
    );
    // What the guest reports is newer than the record.
    assert_eq!(
        (first.volume.guest_device.as_str(), first.volume.device_number.as_str()),
        ("sdz", "8:400")
    );
    assert_eq!(first.volume.device_filter, "v1");
    assert_eq!((second.volume.size, second.volume.read_only), (2 * MIB, true));
    assert!(second.guest.as_ref().unwrap().read_only);

    let of_c2 = host.verb("list", &["--container", "c2"]).await.listing();
    assert_eq!(of_c2.body.volumes, listing.body.volumes[2..]);
    host.verb("list", &["--container", "c9"]).await.assert_fails("container_not_found", 3);

    let by_id = host.verb("inspect", &["--volume", &b.body.volumes[0].id]).await.listing();
    // The same as listed, and the holders.
    let mut inspected = listing.body.volumes[1..2].to_vec();
    inspected[0].guest.as_mut().unwrap().holders = Some(Vec::new());
    assert_eq!((by_id.command.as_str(), &by_id.body.volumes), ("inspect", &inspected));
    let by_path =
        host.verb("inspect", &["--container", "c1", "--device-path", "/dev/xvdb"]).await.listing();
    assert_eq!(by_path.body.volumes, by_id.body.volumes);
    host.verb("inspect", &["--volume", "0123456789abcdef"])
        .await
        .assert_fails("volume_not_found", 3);
    host.verb("inspect", &["--device-path", "/dev/xvdc"]).await.assert_fails("volume_not_found", 3);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_container_that_is_gone_makes_its_volumes_stale() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    let listing = host.verb("list", &[]).await.listing();
    assert_eq!(listing.body.volumes[0].state, State::Stale { cause: Cause::ContainerGone });
}

#[tokio::test]
async fn a_restarted_container_needs_a_new_hot_plug() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let plugged = host.snapshot().await;
    *host.agent.container_started.lock().unwrap() = 2000;
    host.agent.lost_nodes.lock().unwrap().push("/dev/xvda".into());
    assert_eq!(
        host.verb("list", &[]).await.listing().body.volumes[0].state,
        State::Stale { cause: Cause::ContainerRestarted }
    );
    let again = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(host.verb("list", &[]).await.listing().body.volumes[0].state, State::Attached);
    assert_eq!(again.body.volumes[0].place.path(), "/dev/xvda");
    let count =
        |snapshot: &serde_json::Value| snapshot["query-fdsets"][0]["fds"].as_array().unwrap().len();
    assert_eq!(count(&host.snapshot().await), count(&plugged));
}

#[tokio::test]
async fn a_volume_that_the_guest_lost_is_incomplete() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.agent.attached.lock().unwrap().clear();
    assert_eq!(host.verb("list", &[]).await.listing().body.volumes[0].state, State::Incomplete);
}

#[tokio::test]
async fn a_volume_that_misses_a_part_in_qemu_is_incomplete() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    host.execute("device_del", json!({"id": format!("ecrblk-{id}")})).await;
    host.await_event("DEVICE_DELETED").await;
    let listing = host.verb("list", &[]).await.listing();
    assert_eq!(
        (&listing.body.volumes[0].volume.id, listing.body.volumes[0].state),
        (&id, State::Incomplete)
    );
    host.execute("blockdev-del", json!({"node-name": format!("ecrblk-{id}-n")})).await;
    assert_eq!(host.verb("list", &[]).await.listing().body.volumes[0].state, State::Incomplete);
}

#[tokio::test]
async fn a_disk_without_a_record_is_listed_as_incomplete() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let plugged = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let sets = host.snapshot().await["query-fdsets"].clone();
    host.execute("remove-fd", json!({"fdset-id": sets[0]["fdset-id"]})).await;
    let listing = host.verb("list", &[]).await.listing();
    let listed = &listing.body.volumes[0];
    assert_eq!((&listed.volume.id, listed.state), (&plugged.body.volumes[0].id, State::Incomplete));
    assert_eq!((listed.volume.scsi.controller.as_str(), listed.volume.size), ("scsi0", MIB));
    assert!(listed.volume.container.is_empty() && listed.guest.is_none());
}

#[tokio::test]
async fn list_waits_for_a_command_that_runs() {
    let host = Host::boot().await;
    let directory = std::fs::File::open(host.path("vm/s1")).unwrap();
    let _lock = nix::fcntl::Flock::lock(directory, nix::fcntl::FlockArg::LockExclusive).unwrap();
    host.verb("list", &["--timeout", "300ms"]).await.assert_fails("timed_out", 7);
}
