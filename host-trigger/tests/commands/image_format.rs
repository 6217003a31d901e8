//! Images of other formats, given as raw.

use std::fs;

use crate::common::{
    Host,
    volume::{Image, Loop},
};
use host_trigger::output::envelope::Outcome;

const MIB: u64 = 1 << 20;
const RAW: [&str; 2] = ["--image-format", "raw"];

/// Makes the file begin like a qcow2 image, as its user or a guest can.
fn make_qcow2(image: &Image) {
    let file = fs::OpenOptions::new().write(true).open(image.path()).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"QFI\xfb\0\0\0\x03", 0).unwrap();
}

#[tokio::test]
async fn an_image_of_another_format_is_refused_unless_it_is_said_to_be_raw() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    make_qcow2(&image);
    let before = host.snapshot().await;
    for more in [&[][..], &["--read-only"], &["--dry-run"]] {
        let ran = host.plug(image.path(), "/dev/xvda", more).await;
        ran.assert_fails("source_format", 6);
        let error = ran.failure();
        assert!(error.message.contains("qcow2"), "{error:?}");
        assert!(error.remedy.unwrap().contains("--image-format raw"));
    }
    assert_eq!((host.snapshot().await, host.changes().len()), (before, 0));
    let dry_run = [&RAW[..], &["--dry-run"]].concat();
    host.plug(image.path(), "/dev/xvda", &dry_run).await.report();
    let plugged = host.plug(image.path(), "/dev/xvda", &RAW).await.report();
    assert_eq!(plugged.body.volumes[0].size, MIB, "no format is probed");
    let medium = host.medium(&plugged.body.volumes[0].id).await;
    assert_eq!((&medium["drv"], &medium["image"]["format"]), (&"raw".into(), &"raw".into()));
}

/// A guest can write such a signature while it has the disk.
#[tokio::test]
async fn what_a_guest_writes_prevents_only_a_new_plug() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let c1 = ["--container", "c1", "--device-path", "/dev/xvda"];
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    make_qcow2(&image);
    let again = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    let grown = host.verb("resize", &[&c1[..], &["--size", "2MiB"]].concat()).await.report();
    assert_eq!(grown.result, Outcome::Resized);
    host.verb("hot-unplug", &c1).await.report();
    host.plug(image.path(), "/dev/xvda", &[]).await.assert_fails("source_format", 6);
    host.plug(image.path(), "/dev/xvda", &RAW).await.report();
}

/// An encrypted disk that the container opens is normal, and so is a disk that once was something
/// else.
#[tokio::test]
async fn a_block_device_is_what_it_is() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    make_qcow2(&image);
    let device = Loop::over_with(image.path(), &[]);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn no_other_format_can_be_given() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let ran = host.plug(image.path(), "/dev/xvda", &["--image-format", "qcow2"]).await;
    ran.assert_fails("usage", 2);
    assert_eq!(host.changes().len(), 0);
}
