//! Unplug: the volume goes, with everything that came with it.

use super::super::{
    Stage,
    check::check,
    direct::{MIB, assert_done},
    stage::succeeded,
};
use super::Check;
use crate::{Volume, random_bytes};

pub(super) const CHECKS: &[Check] = &[
    check!(
        "unplug",
        leaves_nothing,
        "QEMU, the guest's disks, the container's /dev and rights are what they were"
    ),
    check!(
        "unplug",
        held_volume_is_refused_and_works_on,
        "while a process has it open it stays, works, and the holder is named"
    ),
    check!(
        "unplug",
        detach_of_nothing_is_unchanged,
        "a Detach of what is not there succeeds and says unchanged"
    ),
    check!(
        "unplug",
        what_was_written_is_on_the_host,
        "bytes that were in the guest's cache are on the volume"
    ),
];

const PATH: &str = "/dev/conformance";

async fn leaves_nothing(stage: &Stage) {
    let volume = Volume::image(MIB);
    // On cgroup v1 the pod keeps its right on the first disk's number.
    stage.plug(&stage.ruled, &volume, PATH).await;
    stage.unplug(&stage.ruled, PATH).await;
    let before = stage.snapshot().await;
    stage.plug(&stage.ruled, &volume, PATH).await;
    stage.unplug(&stage.ruled, PATH).await;
    stage.assert_as_before(&before).await;
}

async fn held_volume_is_refused_and_works_on(stage: &Stage) {
    let volume = Volume::image(MIB);
    let container = &stage.container;
    stage.plug(container, &volume, PATH).await;
    // Detached from the call that starts it: no stream of the agent's stays open.
    let hold = format!(
        "exec 3<{PATH}; touch /dev/held; until test -e /dev/let-go; do sleep 0.1; done; rm /dev/held"
    );
    let start = format!(
        "setsid sh -c '{hold}' </dev/null >/dev/null 2>&1 & until test -e /dev/held; do sleep 0.1; done"
    );
    container.exec(&["sh", "-c", &start]).await;
    let finished = stage.hot_unplug(container, PATH).run().await;
    let (_, message) = finished.failed_with(5);
    assert!(message.contains("sh"), "the holder is not named: {message}");
    assert!(container.read(PATH, 0..4096).await == volume.bytes(0..4096), "it works no more");
    container.exec(&["touch", "/dev/let-go"]).await;
    succeeded(&stage.hot_unplug(container, PATH).args(["--wait", "10s"]).run().await);
    container
        .exec(&["sh", "-c", "while test -e /dev/held; do sleep 0.1; done; rm /dev/let-go"])
        .await;
}

async fn detach_of_nothing_is_unchanged(stage: &Stage) {
    let disk = stage.nowhere();
    let answer = stage.detach(disk.to(&stage.container, PATH)).await;
    assert_done(&answer.failure);
    let told: Vec<_> =
        answer.detached.iter().map(|gone| (gone.serial.clone(), gone.unchanged)).collect();
    assert_eq!(told, [(disk.serial.clone(), true)]);
}

async fn what_was_written_is_on_the_host(stage: &Stage) {
    let volume = Volume::image(MIB);
    stage.plug(&stage.container, &volume, PATH).await;
    let fresh = random_bytes(65536);
    let write = ["dd", &format!("of={PATH}"), "bs=64k", "iflag=fullblock", "conv=notrunc"];
    let written = stage.container.try_exec(&write, &fresh).await;
    let written = written.unwrap_or_else(|error| panic!("{}", error.chain()));
    assert_eq!(written.status, 0, "{}", written.error_text());
    stage.unplug(&stage.container, PATH).await;
    assert!(volume.bytes(0..65536) == fresh, "the host reads other bytes than the container wrote");
}
