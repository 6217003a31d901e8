//! The number of a volume's descriptor set is derived from the volume's ID, so that all volumes of
//! a call are passed to QEMU in one write. Another client can have a set of the same number, and an
//! older version left the choice to QEMU.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use crate::common::{Host, run, volume::Image};
use host_trigger::output::envelope::Outcome;
use rstest::rstest;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// The numbers that are derived.
const DERIVED: std::ops::Range<u64> = 1 << 30..1 << 31;

fn sets(snapshot: &Value) -> Vec<u64> {
    let sets = snapshot["query-fdsets"].as_array().unwrap().iter();
    sets.map(|set| set["fdset-id"].as_u64().unwrap()).collect()
}

/// Returns the number of the set that `image` gets.
async fn set_of(host: &mut Host, image: &Path) -> u64 {
    let plugged = host.plug(image, "/dev/xvda", &[]).await.report();
    let all = sets(&host.snapshot().await);
    let derived: Vec<_> = all.into_iter().filter(|set| DERIVED.contains(set)).collect();
    host.verb("hot-unplug", &["--volume", &plugged.body.volumes[0].id]).await.report();
    let [set] = derived[..] else { panic!("{derived:?}") };
    set
}

#[rstest]
#[case::that_qemu_could_use(true)]
#[case::that_qemu_could_not_use(false)]
#[tokio::test]
async fn a_set_of_another_program_is_refused_and_left_alone(#[case] usable: bool) {
    let mut host = Host::boot().await;
    let (image, theirs) = (Image::of(MIB), Image::of(2 * MIB));
    let set = set_of(&mut host, image.path()).await;
    match usable {
        true => {
            let file = fs::File::options().read(true).write(true).open(theirs.path()).unwrap();
            host.pass(file, set, "theirs").await;
        }
        false => drop(host.add_fd("theirs", Some(set)).await),
    }
    let before = host.snapshot().await;
    for more in [&[][..], &["--dry-run"]] {
        let ran = host.plug(image.path(), "/dev/xvda", more).await;
        ran.assert_fails("descriptor_set_taken", 4);
        assert!(ran.failure().message.contains(&set.to_string()), "{ran:?}");
        assert_eq!(host.snapshot().await, before, "{more:?}");
    }
    assert!(host.agent.attached_paths().is_empty());
    host.execute("remove-fd", json!({"fdset-id": set})).await;
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_descriptor_that_another_program_adds_later_stays_when_the_volume_goes() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let set = sets(&host.snapshot().await)[0];
    let theirs = host.add_fd("theirs", Some(set)).await;
    host.verb("hot-unplug", &["--container", "c1", "--device-path", "/dev/xvda"]).await.report();
    let left = host.snapshot().await;
    let expected = json!([{"fdset-id": set, "fds": [{"fd": theirs.fd, "opaque": "theirs"}]}]);
    assert_eq!(left["query-fdsets"], expected);
}

#[tokio::test]
async fn all_volumes_of_a_call_are_passed_in_one_write() {
    const COUNT: usize = 64;
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let images: Vec<_> = (1..=COUNT as u64).map(|size| Image::of(size * 4096)).collect();
    let paths: Vec<_> = (0..COUNT).map(|index| format!("/dev/x{index}")).collect();
    let volumes: Vec<_> =
        images.iter().zip(&paths).map(|(image, path)| (image.path(), path.as_str())).collect();
    let report = run(&mut host.command(&volumes, &[])).await.report();

    // No disk before the last node.
    let names: Vec<_> = host.changes().iter().map(|it| it["execute"].clone()).collect();
    let first_disk = names.iter().position(|name| name == "device_add").unwrap();
    assert_eq!(names[..first_disk].iter().filter(|name| *name == "add-fd").count(), COUNT);
    assert!(!names[first_disk..].iter().any(|name| name == "blockdev-add"));

    // Each has the descriptor of its own image.
    let snapshot = host.snapshot().await;
    let of = |set: &Value| {
        let fds = set["fds"].as_array().unwrap();
        let record = |fd: &&Value| fd["opaque"].as_str().unwrap().contains("\"source\"");
        let fd = fds.iter().find(record).unwrap();
        let path = format!("/proc/{}/fd/{}", host.qemu.id(), fd["fd"]);
        (set["fdset-id"].as_u64().unwrap(), fs::metadata(path).unwrap().ino())
    };
    let passed: Vec<_> = snapshot["query-fdsets"].as_array().unwrap().iter().map(of).collect();
    for (image, volume) in images.iter().zip(&report.body.volumes) {
        let node = format!("ecrblk-{}-n", volume.id);
        let nodes = snapshot["query-named-block-nodes"].as_array().unwrap();
        let node = nodes.iter().find(|it| it["node-name"] == node.as_str()).unwrap();
        let size = fs::metadata(image.path()).unwrap().len();
        assert_eq!((node["image"]["virtual-size"].as_u64(), volume.size), (Some(size), size));
        let inode = fs::metadata(image.path()).unwrap().ino();
        let set = passed.iter().find(|(_, passed)| *passed == inode).unwrap().0;
        assert_eq!(node["file"], format!("/dev/fdset/{set}"));
        assert!(DERIVED.contains(&set), "{set}");
    }
    for volume in &report.body.volumes {
        host.verb("hot-unplug", &["--volume", &volume.id]).await.report();
    }
    assert_eq!(host.snapshot().await, clean);
}

/// As 0.1 did until it derived the number.
#[tokio::test]
async fn a_volume_in_a_set_that_qemu_numbered_is_found_and_removed() {
    let mut host = Host::boot().await;
    let (clean, image) = (host.snapshot().await, Image::of(MIB));
    let report = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let id = &report.body.volumes[0].id;
    let opaques: Vec<String> = {
        let snapshot = host.snapshot().await;
        let fds = snapshot["query-fdsets"][0]["fds"].as_array().unwrap().iter();
        fds.map(|fd| fd["opaque"].as_str().unwrap().to_owned()).collect()
    };
    let derived = sets(&host.snapshot().await)[0];
    // The same volume again, in the set 0.
    host.execute("device_del", json!({"id": format!("ecrblk-{id}")})).await;
    host.await_event("DEVICE_DELETED").await;
    host.execute("blockdev-del", json!({"node-name": format!("ecrblk-{id}-n")})).await;
    host.execute("remove-fd", json!({"fdset-id": derived})).await;
    let file = fs::File::options().read(true).write(true).open(image.path()).unwrap();
    host.pass(file, 0, &opaques[0]).await;
    host.add_fd(&opaques[1], Some(0)).await;
    let node = json!({
        "driver": "raw", "node-name": format!("ecrblk-{id}-n"),
        "file": {"driver": "file", "filename": "/dev/fdset/0"},
    });
    host.execute("blockdev-add", node).await;
    let device = json!({
        "driver": "scsi-hd", "id": format!("ecrblk-{id}"), "drive": format!("ecrblk-{id}-n"),
        "bus": "scsi0.0", "scsi-id": 255, "lun": 1, "serial": id,
    });
    host.execute("device_add", device).await;

    let again = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    assert_eq!(sets(&host.snapshot().await), [0]);
    host.verb("hot-unplug", &["--volume", id]).await.report();
    assert_eq!(host.snapshot().await, clean);
}
