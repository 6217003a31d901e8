//! The main job: a volume appears in a running container, and every byte is right.

use super::super::{
    Facts, Stage,
    check::check,
    direct::{MIB, assert_done},
    stage::{has, plugged},
};
use super::Check;
use crate::{Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "plug",
        container_reads_what_the_host_wrote,
        "a volume appears in a running container with the host's bytes"
    )
    .gate(),
    check!(
        "plug",
        host_reads_what_the_container_wrote,
        "what the container writes and syncs is on the host"
    ),
    check!("plug", device_has_the_volumes_size, "the container sees exactly the volume's size"),
    check!(
        "plug",
        node_has_the_owner_and_mode_that_were_asked,
        "uid, gid and mode of the device node are the request's"
    ),
    check!(
        "plug",
        read_only_volume_cannot_be_written,
        "a volume that is plugged read-only is read, and not written"
    ),
    check!(
        "plug",
        volumes_of_one_call_are_not_mixed_up,
        "four volumes in one call: each path has its own volume's bytes"
    ),
    check!(
        "plug",
        repeated_call_is_unchanged,
        "the same call once more succeeds, says unchanged, and changes nothing"
    ),
    check!("plug", calls_at_once_all_succeed, "three calls at the same time plug three volumes"),
    check!(
        "plug",
        disk_that_the_kernel_found_first_is_taken,
        "a disk that the kernel added before the request is taken, though no event comes any more"
    )
    .only_if(Facts::scans_by_itself),
];

const PATH: &str = "/dev/conformance";

async fn container_reads_what_the_host_wrote(stage: &Stage) {
    let volume = Volume::image(2 * MIB);
    let plugged = stage.plug(&stage.container, &volume, PATH).await;
    assert_eq!(plugged.result, "attached");
    for range in [0..4096, MIB..MIB + 65536, 2 * MIB - 4096..2 * MIB] {
        let read = stage.container.read(PATH, range.clone()).await;
        assert!(read == volume.bytes(range.clone()), "bytes {range:?} are not the host's");
    }
    stage.unplug(&stage.container, PATH).await;
}

async fn host_reads_what_the_container_wrote(stage: &Stage) {
    let volume = Volume::image(2 * MIB);
    stage.plug(&stage.container, &volume, PATH).await;
    let fresh = random_bytes(65536);
    stage.container.write(PATH, MIB, &fresh).await;
    assert!(
        volume.bytes(MIB..MIB + 65536) == fresh,
        "the host reads other bytes than the container wrote"
    );
    stage.unplug(&stage.container, PATH).await;
}

async fn device_has_the_volumes_size(stage: &Stage) {
    // No power of two, and no whole number of larger blocks.
    let volume = Volume::image(MIB + 7 * 512);
    stage.plug(&stage.container, &volume, PATH).await;
    let size = stage.container.exec(&["blockdev", "--getsize64", PATH]).await;
    assert_eq!(String::from_utf8_lossy(&size).trim(), volume.size().to_string());
    stage.unplug(&stage.container, PATH).await;
}

async fn node_has_the_owner_and_mode_that_were_asked(stage: &Stage) {
    let volume = Volume::image(MIB);
    let options = ["--uid", "1000", "--gid", "2000", "--mode", "0640"];
    let finished = stage.hot_plug(&stage.container, &[(&volume, PATH)]).args(options).run().await;
    let number = plugged(&finished)[0].device_number().to_owned();
    let node = stage.container.exec(&["stat", "-c", "%F %u:%g %a %t %T", PATH]).await;
    let (major, minor) = number.split_once(':').expect("a device number has two parts");
    let hex = |text: &str| format!("{:x}", text.parse::<u32>().expect("a number"));
    let expected = format!("block special file 1000:2000 640 {} {}", hex(major), hex(minor));
    assert_eq!(String::from_utf8_lossy(&node).trim(), expected);
    stage.unplug(&stage.container, PATH).await;
}

async fn read_only_volume_cannot_be_written(stage: &Stage) {
    let volume = Volume::image(MIB);
    let before = volume.checksum();
    let finished =
        stage.hot_plug(&stage.ruled, &[(&volume, PATH)]).args(["--read-only"]).run().await;
    assert_eq!(plugged(&finished)[0].volume["read_only"], true);
    assert!(
        stage.ruled.read(PATH, 0..65536).await == volume.bytes(0..65536),
        "other bytes than the host's"
    );
    let write = ["dd", "if=/dev/zero", &format!("of={PATH}"), "count=1", "conv=notrunc,fsync"];
    stage.ruled.exec_fails(&write).await;
    stage.unplug(&stage.ruled, PATH).await;
    assert_eq!(volume.checksum(), before, "the volume was written");
}

async fn volumes_of_one_call_are_not_mixed_up(stage: &Stage) {
    let volumes: Vec<_> = (0..4).map(|_| Volume::image(MIB)).collect();
    let paths =
        ["/dev/conformance-d", "/dev/conformance-b", "/dev/conformance-a", "/dev/conformance-c"];
    let pairs: Vec<_> = volumes.iter().zip(paths).collect();
    plugged(&stage.hot_plug(&stage.container, &pairs).run().await);
    for (volume, path) in &pairs {
        assert!(
            stage.container.read(path, 0..4096).await == volume.bytes(0..4096),
            "{path} is another volume"
        );
    }
    for path in paths {
        stage.unplug(&stage.container, path).await;
    }
}

async fn repeated_call_is_unchanged(stage: &Stage) {
    let volume = Volume::image(MIB);
    let first = stage.plug(&stage.ruled, &volume, PATH).await;
    let before = stage.snapshot().await;
    let second = stage.plug(&stage.ruled, &volume, PATH).await;
    assert_eq!((second.result.as_str(), &second.volume), ("unchanged", &first.volume));
    stage.assert_as_before(&before).await;
    // The host knows it by itself; the agent has to know it, too.
    let mut attachment = first.attachment();
    attachment.size = volume.size();
    let answer = stage.attach(vec![attachment], stage.soon()).await;
    assert_done(&answer.failure);
    assert!(
        answer.attached.iter().all(|attached| attached.unchanged),
        "Attach itself says that it changed something"
    );
    stage.unplug(&stage.ruled, PATH).await;
}

async fn calls_at_once_all_succeed(stage: &Stage) {
    let volumes: Vec<_> = (0..3).map(|_| Volume::image(MIB)).collect();
    let paths = ["/dev/conformance-1", "/dev/conformance-2", "/dev/conformance-3"];
    let command =
        |index: usize| stage.hot_plug(&stage.container, &[(&volumes[index], paths[index])]);
    let commands = [command(0), command(1), command(2)];
    let finished = tokio::join!(commands[0].run(), commands[1].run(), commands[2].run());
    for finished in [finished.0, finished.1, finished.2] {
        plugged(&finished);
    }
    for (volume, path) in volumes.iter().zip(paths) {
        assert!(
            stage.container.read(path, 0..4096).await == volume.bytes(0..4096),
            "{path} is another volume"
        );
        stage.unplug(&stage.container, path).await;
    }
}

async fn disk_that_the_kernel_found_first_is_taken(stage: &Stage) {
    let disk = stage.add_disk().await;
    stage.until_visible(&disk).await;
    let attachment = disk.to(&stage.container, PATH);
    let answer = stage.attach(vec![attachment.clone()], stage.soon()).await;
    assert_done(&answer.failure);
    assert!(
        stage.container.read(PATH, 0..4096).await == disk.volume.bytes(0..4096),
        "other bytes than the host's"
    );
    assert_done(&stage.detach(attachment).await.failure);
    assert!(!has(&stage.container, PATH).await, "the node is still there");
    stage.remove(&disk).await;
}
