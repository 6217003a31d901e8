//! Hot-unplug: the volume is removed, with everything that the hot-plug added.

use super::super::{
    Fixture,
    check::check,
    fixture::succeeded,
    raw_client::{MIB, assert_succeeded},
};
use super::Check;
use crate::{Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "unplug",
        leaves_nothing,
        "QEMU, the guest's disks, the container's /dev and device rules are as before",
        breaks: "The agent keeps something of the disk: a descriptor, a mount, a rule, an entry in its \
         own list of devices.",
        look: "The message has each difference. agent_descriptors: what holds the file; \
         container_devices and device_filters: the agent's log of the detach."
    ),
    check!(
        "unplug",
        held_volume_is_refused_and_works_on,
        "while a process has it open it stays usable, and the holder is named",
        breaks: "Processes of the container are not found: the agent's /proc shows another PID namespace, \
         or is mounted with hidepid.",
        look: "/proc in the agent's mount namespace: it must show every process of the guest."
    ),
    check!(
        "unplug",
        detach_of_nothing_is_unchanged,
        "a Detach of a volume that is not attached succeeds and reports unchanged",
        breaks: "The glue returns an error for a container that has no volume, or the policy denies \
         DetachBlockVolumeRequest.",
        look: "The reason in the failure, and the agent's log."
    ),
    check!(
        "unplug",
        what_was_written_is_on_the_host,
        "bytes from the guest's cache are written to the volume",
        breaks: "The disk is deleted before its cache is written back. This loses data.",
        look: "The agent's log of the detach at level debug: flush comes before delete. QEMU's cache \
         mode of the disk."
    ),
];

const PATH: &str = "/dev/conformance";

async fn leaves_nothing(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    // On cgroup v1 the pod keeps the rule for the first disk's number.
    fixture.plug(&fixture.filtered, &volume, PATH).await;
    fixture.unplug(&fixture.filtered, PATH).await;
    let before = fixture.snapshot().await;
    fixture.plug(&fixture.filtered, &volume, PATH).await;
    fixture.unplug(&fixture.filtered, PATH).await;
    fixture.assert_as_before(&before).await;
}

async fn held_volume_is_refused_and_works_on(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    let container = &fixture.container;
    fixture.plug(container, &volume, PATH).await;
    // In its own session with its own streams, so that the call that starts it ends.
    let hold = format!(
        "exec 3<{PATH}; touch /dev/held; \
         until test -e /dev/release; do sleep 0.1; done; rm /dev/held"
    );
    let start = format!(
        "setsid sh -c '{hold}' </dev/null >/dev/null 2>&1 & \
         until test -e /dev/held; do sleep 0.1; done"
    );
    container.exec(&["sh", "-c", &start]).await;
    let finished = fixture.hot_unplug(container, PATH).run().await;
    let (_, message) = finished.failed_with(5);
    assert!(message.contains("sh"), "the holder is not named: {message}");
    assert!(
        container.read(PATH, 0..4096).await == volume.bytes(0..4096),
        "it cannot be read any more"
    );
    container.exec(&["touch", "/dev/release"]).await;
    succeeded(&fixture.hot_unplug(container, PATH).args(["--wait", "10s"]).run().await);
    container
        .exec(&["sh", "-c", "while test -e /dev/held; do sleep 0.1; done; rm /dev/release"])
        .await;
}

async fn detach_of_nothing_is_unchanged(fixture: &Fixture) {
    let disk = fixture.absent_disk();
    let answer = fixture.detach(disk.attachment(&fixture.container, PATH)).await;
    assert_succeeded(&answer.failure);
    let detached: Vec<_> =
        answer.detached.iter().map(|volume| (volume.serial.clone(), volume.unchanged)).collect();
    assert_eq!(detached, [(disk.serial.clone(), true)]);
}

async fn what_was_written_is_on_the_host(fixture: &Fixture) {
    let volume = Volume::image(MIB);
    fixture.plug(&fixture.container, &volume, PATH).await;
    let fresh = random_bytes(65536);
    let write = ["dd", &format!("of={PATH}"), "bs=64k", "iflag=fullblock", "conv=notrunc"];
    let written = fixture.container.try_exec(&write, &fresh).await;
    let written = written.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(written.status, 0, "{}", written.error_text());
    fixture.unplug(&fixture.container, PATH).await;
    assert!(volume.bytes(0..65536) == fresh, "the host reads other bytes than the container wrote");
}
