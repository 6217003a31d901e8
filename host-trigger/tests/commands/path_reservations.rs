//! A device path of a container gets one volume, and a hot-plug checks that without a query that
//! lists all volumes.

use std::path::Path;

use crate::common::{Host, volume::Image};
use host_trigger::output::envelope::Outcome;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Asserts that `volume` is refused at `path`, because the volume `by` has that path.
async fn assert_path_is_taken(host: &Host, volume: &Path, path: &str, by: &str) {
    let ran = host.plug(volume, path, &[]).await;
    ran.assert_fails("path_taken", 4);
    assert!(ran.failure().message.contains(by), "{ran:?}");
}

#[tokio::test]
async fn a_new_volume_is_plugged_without_a_query_that_lists_all_volumes() {
    let host = Host::boot().await;
    let (first, second) = (Image::of(MIB), Image::of(MIB));
    host.plug(first.path(), "/dev/a", &[]).await.report();
    host.plug(second.path(), "/dev/b", &["--controller", "scsi0"]).await.report();
    let commands = host.commands();
    let listing = ["query-fdsets", "query-named-block-nodes", "query-block", "qom-list"];
    let lists_all = |command: &&Value| listing.contains(&command["execute"].as_str().unwrap());
    assert_eq!(commands.iter().find(lists_all), None);
    assert!(commands.iter().any(|command| command["execute"] == "blockdev-add"), "{commands:?}");
}

#[tokio::test]
async fn the_volume_at_a_taken_path_is_reported() {
    let mut host = Host::boot().await;
    let (first, second) = (Image::of(MIB), Image::of(MIB));
    let plugged = host.plug(first.path(), "/dev/a", &[]).await.report();
    let before = host.snapshot().await;
    assert_path_is_taken(&host, second.path(), "/dev/a", &plugged.body.volumes[0].id).await;
    assert_eq!(host.snapshot().await, before);
    host.agent.taken_paths.lock().unwrap().push("/dev/b".to_owned());
    host.plug(second.path(), "/dev/b", &[]).await.assert_fails("path_taken", 4);
    assert_eq!(host.snapshot().await, before);
}

/// The guest does not know of the volume any more, but QEMU does.
#[tokio::test]
async fn a_path_stays_reserved_for_a_volume_whose_device_node_was_lost() {
    let mut host = Host::boot().await;
    let (first, second, third) = (Image::of(MIB), Image::of(MIB), Image::of(MIB));
    let plugged = host.plug(first.path(), "/dev/a", &[]).await.report();
    host.agent.attached.lock().unwrap().clear();
    let before = host.snapshot().await;
    assert_path_is_taken(&host, second.path(), "/dev/a", &plugged.body.volumes[0].id).await;
    let volumes = [(third.path(), "/dev/b"), (second.path(), "/dev/a")];
    crate::common::run(&mut host.command(&volumes, &[])).await.assert_fails("path_taken", 4);
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
}

/// The disk belongs to another attachment, too, and its block node has the name of that one.
#[tokio::test]
async fn a_path_stays_reserved_for_a_further_attachment_whose_device_node_was_lost() {
    let mut host = Host::boot().await;
    let (shared, other) = (Image::of(MIB), Image::of(MIB));
    let plugged = host.plug(shared.path(), "/dev/a", &[]).await.report();
    host.plug(shared.path(), "/dev/b", &["--shared"]).await.report();
    host.agent.attached.lock().unwrap().clear();
    let before = host.snapshot().await;
    assert_path_is_taken(&host, other.path(), "/dev/b", &plugged.body.volumes[0].id).await;
    assert_eq!(host.snapshot().await, before);
    // Each of the two may be removed first.
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
async fn a_path_is_free_when_its_attachment_is_gone_though_the_disk_is_not() {
    let mut host = Host::boot().await;
    let (shared, other) = (Image::of(MIB), Image::of(MIB));
    host.plug(shared.path(), "/dev/a", &[]).await.report();
    let second = ["--shared", "--sandbox", "s1", "--container", "c2"];
    host.plug(shared.path(), "/dev/a", &second).await.report();
    let gone = host.verb("hot-unplug", &["--container", "c1", "--device-path", "/dev/a"]).await;
    assert_eq!(gone.exit_code, Some(0), "{gone:?}");
    let plugged = host.plug(other.path(), "/dev/a", &[]).await.report();
    assert_eq!(plugged.result, Outcome::Attached);
    // The new volume has the path now.
    host.agent.attached.lock().unwrap().retain(|_, attachment| attachment.container_id != "c1");
    let before = host.snapshot().await;
    assert_path_is_taken(&host, Image::of(MIB).path(), "/dev/a", &plugged.body.volumes[0].id).await;
    assert_eq!(host.snapshot().await, before);
}

/// A second descriptor for reading conflicts with nothing. Only the descriptor that a killed run
/// left shows that there is a leftover.
#[tokio::test]
async fn a_leftover_of_a_read_only_image_is_noticed() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let first = host.plug(image.path(), "/dev/a", &["--read-only"]).await.report();
    let again = host.plug(image.path(), "/dev/a", &["--read-only"]).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    // As if the run had been killed before it wrote the commit record.
    let sets = host.query("query-fdsets", json!({})).await;
    let committed =
        |fd: &&Value| fd["opaque"].as_str().is_some_and(|text| text.contains("\"committed\":true"));
    let fd = sets[0]["fds"].as_array().unwrap().iter().find(committed).unwrap()["fd"].clone();
    host.execute("remove-fd", json!({"fdset-id": sets[0]["fdset-id"], "fd": fd})).await;
    let second = host.plug(image.path(), "/dev/a", &["--read-only"]).await.report();
    assert_eq!(
        (second.result, &second.body.volumes[0].id),
        (Outcome::Attached, &first.body.volumes[0].id)
    );
    assert_eq!(host.query("query-fdsets", json!({})).await.as_array().unwrap().len(), 1);
}
