//! Names of a source that come, go or change while it is plugged: QEMU has a descriptor, and the
//! volume stays what it is.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::common::{
    Host,
    volume::{Image, Loop},
};
use host_trigger::{ops::volume::State, output::envelope::Outcome};

const MIB: u64 = 1 << 20;
const XVDA: [&str; 2] = ["--device-path", "/dev/xvda"];

/// Asserts that `/dev/xvda` is attached and can be unplugged, after which nothing is left.
async fn assert_attached_until_unplugged(host: &mut Host, clean: &serde_json::Value) {
    let listed = host.verb("list", &[]).await.listing();
    assert_eq!(listed.body.volumes[0].state, State::Attached);
    host.verb("hot-unplug", &XVDA).await.report();
    assert_eq!(host.snapshot().await, *clean);
}

#[tokio::test]
async fn a_hard_link_and_a_symbolic_link_are_the_same_volume() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let directory = tempfile::tempdir_in(image.path().parent().unwrap()).unwrap();
    let [hard, soft] = ["hard", "soft"].map(|name| directory.path().join(name));
    fs::hard_link(image.path(), &hard).unwrap();
    symlink(image.path(), &soft).unwrap();
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    for link in [&hard, &soft] {
        let again = host.plug(link, "/dev/xvda", &[]).await.report();
        assert_eq!((again.result, &again.body.volumes[0].id), (Outcome::Unchanged, &id));
        host.plug(link, "/dev/xvdb", &[]).await.assert_fails("volume_taken", 4);
    }
}

#[tokio::test]
async fn a_renamed_image_is_the_same_volume() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let directory = tempfile::tempdir().unwrap();
    let [image, moved] = ["image", "moved"].map(|name| directory.path().join(name));
    fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    host.plug(&image, "/dev/xvda", &[]).await.report();
    fs::rename(&image, &moved).unwrap();
    assert_eq!(host.plug(&moved, "/dev/xvda", &[]).await.report().result, Outcome::Unchanged);
    assert_attached_until_unplugged(&mut host, &clean).await;
}

#[tokio::test]
async fn what_replaces_an_image_is_another_volume() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let directory = tempfile::tempdir().unwrap();
    let [image, other] = ["image", "other"].map(|name| directory.path().join(name));
    fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    fs::File::create(&other).unwrap().set_len(2 * MIB).unwrap();
    let first = host.plug(&image, "/dev/xvda", &[]).await.report();
    fs::rename(&other, &image).unwrap();
    host.plug(&image, "/dev/xvda", &[]).await.assert_fails("path_taken", 4);
    let second = host.plug(&image, "/dev/xvdb", &[]).await.report();
    let (first, second) = (&first.body.volumes[0], &second.body.volumes[0]);
    assert_ne!(first.id, second.id);
    assert_eq!((first.size, second.size), (MIB, 2 * MIB));
    host.verb("hot-unplug", &["--device-path", "/dev/xvdb"]).await.report();
    assert_attached_until_unplugged(&mut host, &clean).await;
}

#[tokio::test]
async fn a_removed_image_stays_until_it_is_unplugged() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    host.plug(&image, "/dev/xvda", &[]).await.report();
    fs::remove_file(&image).unwrap();
    let repaired = host.verb("repair", &[]).await;
    assert_eq!(repaired.exit_code, Some(0), "{repaired:?}");
    assert_attached_until_unplugged(&mut host, &clean).await;
}

/// The kernel defers it to the last close.
#[tokio::test]
async fn a_loop_device_that_is_detached_stays_until_it_is_unplugged() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    let device = Loop::over_with(image.path(), &[]);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let detach = Command::new("losetup").arg("--detach").arg(device.path()).status().unwrap();
    assert!(detach.success());
    let bound = Path::new("/sys/block").join(device.path().file_name().unwrap()).join("loop");
    assert!(bound.exists());
    assert_eq!(
        host.plug(device.path(), "/dev/xvda", &[]).await.report().result,
        Outcome::Unchanged
    );
    assert_attached_until_unplugged(&mut host, &clean).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while bound.exists() {
        assert!(Instant::now() < deadline, "{} is still there", bound.display());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Its number may be another test's by now.
    std::mem::forget(device);
}
