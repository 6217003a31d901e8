//! What the disk of the guest reports of the device behind it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::common::{
    Host,
    volume::{Image, Loop},
};
use nix::sys::stat::{major, minor};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

async fn property(host: &mut Host, id: &str, name: &str) -> u64 {
    let path = format!("/machine/peripheral/ecrblk-{id}");
    let value: Value = host.query("qom-get", json!({"path": path, "property": name})).await;
    value.as_u64().unwrap()
}

/// Reads a number of the queue of the device or partition `number`.
fn queue(number: u64, name: &str) -> Option<u64> {
    let device = PathBuf::from(format!("/sys/dev/block/{}:{}", major(number), minor(number)));
    let read = |queue: &str| fs::read_to_string(device.join(queue).join(name)).ok();
    Some(read("queue").or_else(|| read("../queue"))?.trim().parse().unwrap())
}

/// SCSI's word for a medium that does not rotate, or for none.
fn rotation_rate(rotational: Option<u64>) -> u64 {
    u64::from(rotational == Some(0))
}

#[tokio::test]
async fn a_block_device_is_reported_as_it_is() {
    let mut host = Host::boot().await;
    for options in [&[][..], &["--sector-size", "4096"], &["--direct-io=on"]] {
        let device = Loop::with(MIB, options);
        let number = fs::metadata(device.path()).unwrap().rdev();
        let report = host.plug(device.path(), "/dev/xvda", &[]).await.report();
        let id = report.body.volumes[0].id.as_str();
        let of = |name: &str| queue(number, name).unwrap();
        let expected = [
            ("logical_block_size", of("logical_block_size")),
            ("physical_block_size", of("physical_block_size")),
            ("opt_io_size", of("optimal_io_size")),
            ("rotation_rate", rotation_rate(Some(of("rotational")))),
        ];
        for (name, expected) in expected {
            let found = property(&mut host, id, name).await;
            // QEMU has 0 for its default.
            let is_default = found == 0 && expected == 512;
            assert!(
                found == expected || is_default,
                "{options:?}: {name} is {found}, not {expected}"
            );
        }
        let discard = of("discard_granularity");
        let unset = u64::from(u32::MAX);
        let found = property(&mut host, id, "discard_granularity").await;
        let default = [unset, 4096].contains(&found) && [0, 4096].contains(&discard);
        assert!(found == discard || default, "{options:?}: {found}, not {discard}");
        host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();
    }
}

#[tokio::test]
async fn an_image_rotates_if_the_disk_that_it_is_on_does() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let report = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let expected = rotation_rate(queue(fs::metadata(image.path()).unwrap().dev(), "rotational"));
    let found = property(&mut host, &report.body.volumes[0].id, "rotation_rate").await;
    assert_eq!(found, expected);

    // A tmpfs is on no disk.
    if let Ok(image) = tempfile::NamedTempFile::new_in(Path::new("/dev/shm")) {
        image.as_file().set_len(MIB).unwrap();
        let image = image.into_temp_path();
        let report = host.plug(&image, "/dev/xvdb", &[]).await.report();
        let found = property(&mut host, &report.body.volumes[0].id, "rotation_rate").await;
        assert_eq!(found, 0);
    }
}
