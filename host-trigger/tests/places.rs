//! A place in a container has one volume, and a plug finds that out without a look at all volumes
//! that are there.

mod common;

use std::path::Path;

use common::{Host, volume::Image};
use host_trigger::output::Outcome;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// `hot-plug` of a volume at a place that another one has.
async fn assert_place_is_taken(host: &Host, volume: &Path, path: &str, by: &str) {
    let ran = host.plug(volume, path, &[]).await;
    ran.assert_fails("path_taken", 4);
    assert!(ran.failure().error.message.contains(by), "{ran:?}");
}

#[tokio::test]
async fn a_new_volume_is_plugged_without_a_list_that_grows_with_the_volumes() {
    let host = Host::boot().await;
    let (first, second) = (Image::of(MIB), Image::of(MIB));
    host.plug(first.path(), "/dev/a", &[]).await.report();
    host.plug(second.path(), "/dev/b", &["--controller", "scsi0"]).await.report();
    let asked = host.commands();
    let lists = ["query-fdsets", "query-named-block-nodes", "query-block", "qom-list"];
    let grows = |command: &&Value| lists.contains(&command["execute"].as_str().unwrap());
    assert_eq!(asked.iter().find(grows), None);
    assert!(asked.iter().any(|command| command["execute"] == "blockdev-add"), "{asked:?}");
}

#[tokio::test]
async fn who_has_the_place_is_named() {
    let mut host = Host::boot().await;
    let (first, second) = (Image::of(MIB), Image::of(MIB));
    let plugged = host.plug(first.path(), "/dev/a", &[]).await.report();
    let before = host.snapshot().await;
    assert_place_is_taken(&host, second.path(), "/dev/a", &plugged.volumes[0].id).await;
    assert_eq!(host.snapshot().await, before);
    host.guest.taken.lock().unwrap().push("/dev/b".to_owned());
    host.plug(second.path(), "/dev/b", &[]).await.assert_fails("path_taken", 4);
    assert_eq!(host.snapshot().await, before);
}

/// The guest cannot tell, but QEMU can.
#[tokio::test]
async fn a_place_is_kept_for_a_volume_whose_node_was_lost() {
    let mut host = Host::boot().await;
    let (first, second, third) = (Image::of(MIB), Image::of(MIB), Image::of(MIB));
    let plugged = host.plug(first.path(), "/dev/a", &[]).await.report();
    host.guest.attached.lock().unwrap().clear();
    let before = host.snapshot().await;
    assert_place_is_taken(&host, second.path(), "/dev/a", &plugged.volumes[0].id).await;
    let volumes = [(third.path(), "/dev/b"), (second.path(), "/dev/a")];
    common::run(&mut host.command(&volumes, &[])).await.assert_fails("path_taken", 4);
    assert_eq!(host.snapshot().await, before);
    assert!(host.guest.attached_paths().is_empty());
}

/// The disk is another use's, too, so that its node in QEMU has that one's name.
#[tokio::test]
async fn a_place_is_kept_for_a_further_use_whose_node_was_lost() {
    let mut host = Host::boot().await;
    let (shared, other) = (Image::of(MIB), Image::of(MIB));
    let plugged = host.plug(shared.path(), "/dev/a", &[]).await.report();
    host.plug(shared.path(), "/dev/b", &["--shared"]).await.report();
    host.guest.attached.lock().unwrap().clear();
    let before = host.snapshot().await;
    assert_place_is_taken(&host, other.path(), "/dev/b", &plugged.volumes[0].id).await;
    assert_eq!(host.snapshot().await, before);
    // Whichever of the two goes first.
    for (first, last) in [("/dev/b", "/dev/a"), ("/dev/a", "/dev/b")] {
        let unplug = async |path| {
            host.verb("hot-unplug", &["--container", "c1", "--device-path", path]).await.report()
        };
        unplug(first).await;
        assert_eq!(host.plug(other.path(), first, &[]).await.report().result, Outcome::Attached);
        unplug(first).await;
        unplug(last).await;
        host.plug(shared.path(), "/dev/a", &[]).await.report();
        host.plug(shared.path(), "/dev/b", &["--shared"]).await.report();
    }
    assert_eq!(host.snapshot().await["query-named-block-nodes"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_place_is_free_when_its_use_is_gone_though_the_disk_is_not() {
    let mut host = Host::boot().await;
    let (shared, other) = (Image::of(MIB), Image::of(MIB));
    host.plug(shared.path(), "/dev/a", &[]).await.report();
    let second = ["--shared", "--sandbox", "s1", "--container", "c2"];
    host.plug(shared.path(), "/dev/a", &second).await.report();
    let gone = host.verb("hot-unplug", &["--container", "c1", "--device-path", "/dev/a"]).await;
    assert_eq!(gone.exit_code, Some(0), "{gone:?}");
    let plugged = host.plug(other.path(), "/dev/a", &[]).await.report();
    assert_eq!(plugged.result, Outcome::Attached);
    // The new one has it now.
    host.guest.attached.lock().unwrap().retain(|_, attachment| attachment.container_id != "c1");
    let before = host.snapshot().await;
    assert_place_is_taken(&host, Image::of(MIB).path(), "/dev/a", &plugged.volumes[0].id).await;
    assert_eq!(host.snapshot().await, before);
}

/// A second descriptor for reading hinders nobody, so that only the one that a killed run left
/// tells of it.
#[tokio::test]
async fn what_is_left_of_a_read_only_image_is_noticed() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let first = host.plug(image.path(), "/dev/a", &["--read-only"]).await.report();
    let again = host.plug(image.path(), "/dev/a", &["--read-only"]).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    // As if the run had been killed before it wrote the outcome.
    let sets = host.query("query-fdsets", json!({})).await;
    let outcome =
        |fd: &&Value| fd["opaque"].as_str().is_some_and(|text| text.contains("\"committed\":true"));
    let fd = sets[0]["fds"].as_array().unwrap().iter().find(outcome).unwrap()["fd"].clone();
    host.by_hand("remove-fd", json!({"fdset-id": sets[0]["fdset-id"], "fd": fd})).await;
    let second = host.plug(image.path(), "/dev/a", &["--read-only"]).await.report();
    assert_eq!((second.result, &second.volumes[0].id), (Outcome::Attached, &first.volumes[0].id));
    assert_eq!(host.query("query-fdsets", json!({})).await.as_array().unwrap().len(), 1);
}
