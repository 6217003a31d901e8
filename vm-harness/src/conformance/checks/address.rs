//! Which disk it is: its address, its serial and its size have to be right.

use std::time::Duration;

use block_volume_api::block_volume::Reason;

use super::super::{
    Facts, Stage,
    check::check,
    direct::{assert_done, assert_refused},
};
use super::Check;

pub(super) const CHECKS: &[Check] = &[
    check!(
        "address",
        only_the_named_address_is_scanned,
        "a disk that nobody asked for stays unseen by the guest"
    )
    .only_if(Facts::scans_on_demand),
    check!(
        "address",
        disk_with_another_serial_is_refused,
        "a disk at the right address with another serial is not taken"
    ),
    check!(
        "address",
        disk_of_another_size_is_refused,
        "a disk with the right serial and another size is not taken"
    ),
    check!(
        "address",
        disk_that_never_appears_times_out,
        "the wait for a disk ends at its deadline and leaves nothing"
    ),
    check!(
        "address",
        lun_that_is_seen_twice_is_refused,
        "LUN 0 and those above 255, and targets above 255, are invalid"
    ),
];

const PATH: &str = "/dev/conformance";

async fn only_the_named_address_is_scanned(stage: &Stage) {
    let (wanted, other) = (stage.add_disk().await, stage.add_disk().await);
    let attachment = wanted.to(&stage.container, PATH);
    let answer = stage.attach(vec![attachment.clone()], stage.soon()).await;
    assert_done(&answer.failure);
    assert!(stage.is_visible(&wanted).await, "the disk is not at its address");
    assert!(!stage.is_visible(&other).await, "a disk was found that nobody asked for");
    assert_done(&stage.detach(attachment).await.failure);
    stage.remove(&wanted).await;
    stage.remove(&other).await;
}

async fn disk_with_another_serial_is_refused(stage: &Stage) {
    let before = stage.snapshot().await;
    let disk = stage.add_disk().await;
    let mut attachment = disk.to(&stage.container, PATH);
    attachment.serial = stage.nowhere().serial;
    let answer = stage.attach(vec![attachment], stage.soon()).await;
    assert_refused(&answer.failure, Reason::REASON_IDENTITY_MISMATCH);
    stage.remove(&disk).await;
    stage.assert_as_before(&before).await;
}

async fn disk_of_another_size_is_refused(stage: &Stage) {
    let before = stage.snapshot().await;
    let disk = stage.add_disk().await;
    let mut attachment = disk.to(&stage.container, PATH);
    attachment.size += 512;
    let answer = stage.attach(vec![attachment], stage.soon()).await;
    assert_refused(&answer.failure, Reason::REASON_IDENTITY_MISMATCH);
    stage.remove(&disk).await;
    stage.assert_as_before(&before).await;
}

async fn disk_that_never_appears_times_out(stage: &Stage) {
    const LIMIT: Duration = Duration::from_millis(1500);
    let before = stage.snapshot().await;
    let disk = stage.nowhere();
    // By the guest's clock: one that was set while the machine was busy was seen to run twice as
    // fast as the host's.
    let start = uptime(stage).await;
    let answer = stage.attach(vec![disk.to(&stage.container, PATH)], LIMIT).await;
    let elapsed = uptime(stage).await - start;
    assert_refused(&answer.failure, Reason::REASON_TIMED_OUT);
    assert!(
        elapsed >= LIMIT.as_secs_f64() - 0.01,
        "it gave up after {elapsed:.2} s, and had {LIMIT:?}"
    );
    stage.assert_as_before(&before).await;
}

/// In seconds, to a hundredth.
async fn uptime(stage: &Stage) -> f64 {
    let uptime = stage.sandbox().observer().shell("cat /proc/uptime").await;
    let seconds = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok());
    seconds.unwrap_or_else(|| panic!("/proc/uptime says {uptime:?}"))
}

async fn lun_that_is_seen_twice_is_refused(stage: &Stage) {
    let disk = stage.nowhere();
    for (target, lun) in [(150, 0), (150, 256), (256, 1)] {
        let mut attachment = disk.to(&stage.container, PATH);
        (
            attachment.address.mut_or_insert_default().target,
            attachment.address.mut_or_insert_default().lun,
        ) = (target, lun);
        let answer = stage.attach(vec![attachment], stage.soon()).await;
        assert_refused(&answer.failure, Reason::REASON_INVALID_REQUEST);
    }
}
