//! Hot-plug: a volume appears in a running container with the right bytes.

use super::super::{
    Fixture, GuestInfo,
    check::check,
    fixture::{has, plugged},
    raw_client::{MIB, assert_succeeded},
};
use super::Check;
use crate::{Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "plug",
        container_reads_what_the_host_wrote,
        "a volume appears in a running container with the host's bytes",
        breaks: "The disk does not appear (the kernel lacks virtio_scsi or sd_mod, or the plugin's uevent \
         socket gets nothing), the policy denies AttachBlockVolumeRequest, or the node is made in \
         the wrong mount namespace.",
        look: "The reason and the remedy in ecr-runtime's message first, then the agent's log: every \
         step of an attach is logged at level debug (--kernel-param agent.log=debug)."
    )
    .gate(),
    check!(
        "plug",
        host_reads_what_the_container_wrote,
        "what the container writes and syncs is on the volume",
        breaks: "QEMU writes somewhere else, or the agent does not pass all of a process's input on: the \
         bytes come through WriteStdin.",
        look: "Whether plug::container_reads_what_the_host_wrote passed; the agent's write_stdin and \
         close_stdin."
    ),
    check!(
        "plug",
        device_has_the_volumes_size,
        "the container sees exactly the volume's size",
        breaks: "The node has the number of another disk, or the guest's kernel rounds the capacity.",
        look: "lsblk and /sys/block/*/size in the guest, beside the size in ecr-runtime's JSON output."
    ),
    check!(
        "plug",
        node_has_the_owner_and_mode_that_were_asked,
        "uid, gid and mode of the device node are those of the request",
        breaks: "The agent's umask is applied to the mode, or a step after the plugin's changes the \
         owner. A policy cannot change it: it only allows or denies.",
        look: "`stat` of the node in the container; the agent's umask (/proc/1/status, Umask)."
    ),
    check!(
        "plug",
        read_only_volume_cannot_be_written,
        "a volume that is plugged read-only can be read and not written",
        breaks: "The device filter of a filtered container allows reading only, and the disk itself is \
         writable, or the reverse. QEMU must report the disk write-protected.",
        look: "/sys/block/*/ro in the guest, and the device filter rule of the container."
    ),
    check!(
        "plug",
        volumes_of_one_call_are_not_mixed_up,
        "four volumes in one call: each path has its own volume's bytes",
        breaks: "Disks are matched to paths by the order in which they appear and not by their serial \
         numbers.",
        look: "The serial number (VPD page 0x80) of each disk in the guest, beside the volume IDs in \
         ecr-runtime's JSON output."
    ),
    check!(
        "plug",
        repeated_call_is_unchanged,
        "the same call again succeeds, reports unchanged, and changes nothing",
        breaks: "The glue returns another cgroup, or another mount namespace, for the same container at \
         the second call, so that the plugin does not find what it made.",
        look: "What differs is in the message. `ecr-runtime block-volume inspect` shows what the plugin \
         finds of the attachment."
    ),
    check!(
        "plug",
        calls_at_once_all_succeed,
        "three calls at the same time plug three volumes",
        breaks: "The agent serves one request at a time: the glue holds the sandbox's lock across an \
         await, or the server has a limit on requests.",
        look: "The glue's functions: the lock must be released when they return."
    ),
    check!(
        "plug",
        disk_that_the_kernel_found_first_is_taken,
        "a disk that the kernel found before the request is attached, without another event",
        breaks: "The plugin waits for an event of a disk that is there already.",
        look: "dmesg of the guest: the time at which the disk appeared, beside the time of the request \
         in the agent's log."
    )
    .only_if(GuestInfo::scans_by_itself),
];

const PATH: &str = "/dev/conformance";

async fn container_reads_what_the_host_wrote(fixture: &Fixture) {
    let volume = Volume::image(2 * MIB);
    let plugged = fixture.plug(&fixture.container, &volume, PATH).await;
    assert_eq!(plugged.result, "attached");
    for range in [0..4096, MIB..MIB + 65536, 2 * MIB - 4096..2 * MIB] {
        let read = fixture.container.read(PATH, range.clone()).await;
        assert!(read == volume.bytes(range.clone()), "bytes {range:?} are not the host's");
    }
    fixture.unplug(&fixture.container, PATH).await;
}

async fn host_reads_what_the_container_wrote(fixture: &Fixture) {
    let volume = Volume::image(2 * MIB);
    fixture.plug(&fixture.container, &volume, PATH).await;
    let fresh = random_bytes(65536);
    fixture.container.write(PATH, MIB, &fresh).await;
    assert!(
        volume.bytes(MIB..MIB + 65536) == fresh,
        "the host reads other bytes than the container wrote"
    );
    fixture.unplug(&fixture.container, PATH).await;
}

async fn device_has_the_volumes_size(fixture: &Fixture) {
    // Neither a power of two nor a multiple of larger blocks.
    let volume = Volume::image(MIB + 7 * 512);
    fixture.plug(&fixture.container, &volume, PATH).await;
    let size = fixture.container.exec(&["blockdev", "--getsize64", PATH]).await;
    assert_eq!(String::from_utf8_lossy(&size).trim(), volume.size().to_string());
    fixture.unplug(&fixture.container, PATH).await;
}

async fn node_has_the_owner_and_mode_that_were_asked(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    let options = ["--uid", "1000", "--gid", "2000", "--mode", "0640"];
    let finished =
        fixture.hot_plug(&fixture.container, &[(&volume, PATH)]).args(options).run().await;
    let number = plugged(&finished)[0].device_number().to_owned();
    let node = fixture.container.exec(&["stat", "-c", "%F %u:%g %a %t %T", PATH]).await;
    let (major, minor) = number.split_once(':').expect("a device number has two parts");
    let hex = |text: &str| format!("{:x}", text.parse::<u32>().expect("a number"));
    let expected = format!("block special file 1000:2000 640 {} {}", hex(major), hex(minor));
    assert_eq!(String::from_utf8_lossy(&node).trim(), expected);
    fixture.unplug(&fixture.container, PATH).await;
}

async fn read_only_volume_cannot_be_written(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    let before = volume.checksum();
    let finished =
        fixture.hot_plug(&fixture.filtered, &[(&volume, PATH)]).args(["--read-only"]).run().await;
    assert_eq!(plugged(&finished)[0].volume["read_only"], true);
    assert!(
        fixture.filtered.read(PATH, 0..65536).await == volume.bytes(0..65536),
        "other bytes than the host's"
    );
    let write = ["dd", "if=/dev/zero", &format!("of={PATH}"), "count=1", "conv=notrunc,fsync"];
    fixture.filtered.exec_fails(&write).await;
    fixture.unplug(&fixture.filtered, PATH).await;
    assert_eq!(volume.checksum(), before, "the volume was written");
}

async fn volumes_of_one_call_are_not_mixed_up(fixture: &Fixture) {
    let volumes: Vec<_> = (0..4).map(|_| Volume::image(MIB)).collect();
    let paths =
        ["/dev/conformance-d", "/dev/conformance-b", "/dev/conformance-a", "/dev/conformance-c"];
    let pairs: Vec<_> = volumes.iter().zip(paths).collect();
    plugged(&fixture.hot_plug(&fixture.container, &pairs).run().await);
    for (volume, path) in &pairs {
        assert!(
            fixture.container.read(path, 0..4096).await == volume.bytes(0..4096),
            "{path} has the bytes of another volume"
        );
    }
    for path in paths {
        fixture.unplug(&fixture.container, path).await;
    }
}

async fn repeated_call_is_unchanged(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    let first = fixture.plug(&fixture.filtered, &volume, PATH).await;
    let before = fixture.snapshot().await;
    let second = fixture.plug(&fixture.filtered, &volume, PATH).await;
    assert_eq!((second.result.as_str(), &second.volume), ("unchanged", &first.volume));
    fixture.assert_as_before(&before).await;
    // The host detects this without the agent; the agent has to detect it, too.
    let mut attachment = first.attachment();
    attachment.size = volume.size();
    let answer = fixture.attach(vec![attachment], fixture.short_limit()).await;
    assert_succeeded(&answer.failure);
    assert!(answer.attached.iter().all(|attached| attached.unchanged), "Attach reports a change");
    fixture.unplug(&fixture.filtered, PATH).await;
}

async fn calls_at_once_all_succeed(fixture: &Fixture) {
    let volumes: Vec<_> = (0..3).map(|_| Volume::image(MIB)).collect();
    let paths = ["/dev/conformance-1", "/dev/conformance-2", "/dev/conformance-3"];
    let command =
        |index: usize| fixture.hot_plug(&fixture.container, &[(&volumes[index], paths[index])]);
    let commands = [command(0), command(1), command(2)];
    let finished = tokio::join!(commands[0].run(), commands[1].run(), commands[2].run());
    for finished in [finished.0, finished.1, finished.2] {
        plugged(&finished);
    }
    for (volume, path) in volumes.iter().zip(paths) {
        assert!(
            fixture.container.read(path, 0..4096).await == volume.bytes(0..4096),
            "{path} has the bytes of another volume"
        );
        fixture.unplug(&fixture.container, path).await;
    }
}

async fn disk_that_the_kernel_found_first_is_taken(fixture: &Fixture) {
    let disk = fixture.add_disk().await;
    fixture.until_visible(&disk).await;
    let attachment = disk.attachment(&fixture.container, PATH);
    let answer = fixture.attach(vec![attachment.clone()], fixture.short_limit()).await;
    assert_succeeded(&answer.failure);
    assert!(
        fixture.container.read(PATH, 0..4096).await == disk.volume.bytes(0..4096),
        "other bytes than the host's"
    );
    assert_succeeded(&fixture.detach(attachment).await.failure);
    assert!(!has(&fixture.container, PATH).await, "the node still exists");
    fixture.remove(&disk).await;
}
