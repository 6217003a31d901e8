//! The identity of a disk: its address, its serial number and its size have to be right.

use std::time::Duration;

use block_volume_api::block_volume::Reason;

use super::super::{
    Fixture, GuestInfo,
    check::check,
    raw_client::{assert_refused, assert_succeeded},
};
use super::Check;

pub(super) const CHECKS: &[Check] = &[
    check!(
        "address",
        only_the_named_address_is_scanned,
        "the guest does not find a disk that was not requested",
        breaks: "Another part of the agent scans all addresses of the SCSI host (`- - -`), for instance \
         its own handler of SCSI devices.",
        look: "Writes to /sys/class/scsi_host/*/scan in the agent; scsi_mod.scan on the kernel's \
         command line."
    )
    .only_if(GuestInfo::scans_on_demand),
    check!(
        "address",
        disk_with_another_serial_is_refused,
        "a disk at the right address with another serial number is not attached",
        breaks: "The disk's serial number cannot be read and is not compared. This attaches the disk of \
         another volume.",
        look: "/sys/block/*/device/vpd_pg80 in the guest, beside the serial number of the request in \
         the agent's log at level debug."
    ),
    check!(
        "address",
        disk_of_another_size_is_refused,
        "a disk with the right serial number and another size is not attached",
        breaks: "The size is read before the kernel has the capacity, or is not compared.",
        look: "/sys/block/*/size in the guest, and the size of the request in the agent's log at level \
         debug."
    ),
    check!(
        "address",
        disk_that_never_appears_times_out,
        "the wait for a disk ends at its deadline and leaves nothing behind",
        breaks: "The agent's server ends requests earlier (a limit of its own), or the wait does not end: \
         time passes wrongly in the guest.",
        look: "The guest's clock source (dmesg), and a limit on the time of requests in the agent's \
         ttrpc server."
    ),
    check!(
        "address",
        lun_that_is_seen_twice_is_refused,
        "LUN 0 and those above 255, and targets above 255, are invalid",
        breaks: "The plugin is older than the check, or the request is changed before it gets there.",
        look: "The plugin's version in the first line of the output."
    ),
];

const PATH: &str = "/dev/conformance";

async fn only_the_named_address_is_scanned(fixture: &Fixture) {
    let (wanted, other) = (fixture.add_disk().await, fixture.add_disk().await);
    let attachment = wanted.attachment(&fixture.container, PATH);
    let answer = fixture.attach(vec![attachment.clone()], fixture.short_limit()).await;
    assert_succeeded(&answer.failure);
    assert!(fixture.is_visible(&wanted).await, "the disk is not at its address");
    assert!(!fixture.is_visible(&other).await, "the guest found a disk that was not requested");
    assert_succeeded(&fixture.detach(attachment).await.failure);
    fixture.remove(&wanted).await;
    fixture.remove(&other).await;
}

async fn disk_with_another_serial_is_refused(fixture: &Fixture) {
    let before = fixture.snapshot().await;
    let disk = fixture.add_disk().await;
    let mut attachment = disk.attachment(&fixture.container, PATH);
    attachment.serial = fixture.absent_disk().serial;
    let answer = fixture.attach(vec![attachment], fixture.short_limit()).await;
    assert_refused(&answer.failure, Reason::REASON_IDENTITY_MISMATCH);
    fixture.remove(&disk).await;
    fixture.assert_as_before(&before).await;
}

async fn disk_of_another_size_is_refused(fixture: &Fixture) {
    let before = fixture.snapshot().await;
    let disk = fixture.add_disk().await;
    let mut attachment = disk.attachment(&fixture.container, PATH);
    attachment.size += 512;
    let answer = fixture.attach(vec![attachment], fixture.short_limit()).await;
    assert_refused(&answer.failure, Reason::REASON_IDENTITY_MISMATCH);
    fixture.remove(&disk).await;
    fixture.assert_as_before(&before).await;
}

async fn disk_that_never_appears_times_out(fixture: &Fixture) {
    const LIMIT: Duration = Duration::from_millis(1500);
    let before = fixture.snapshot().await;
    let disk = fixture.absent_disk();
    // Measured with the guest's clock: a guest whose clock was set while the host was busy was seen
    // to run twice as fast as the host.
    let start = uptime(fixture).await;
    let answer = fixture.attach(vec![disk.attachment(&fixture.container, PATH)], LIMIT).await;
    let elapsed = uptime(fixture).await - start;
    assert_refused(&answer.failure, Reason::REASON_TIMED_OUT);
    assert!(
        elapsed >= LIMIT.as_secs_f64() - 0.01,
        "it stopped waiting after {elapsed:.2} s, its timeout was {LIMIT:?}"
    );
    fixture.assert_as_before(&before).await;
}

/// Returns the guest's uptime in seconds, with two decimals.
async fn uptime(fixture: &Fixture) -> f64 {
    let uptime = fixture.sandbox().observer().shell("cat /proc/uptime").await;
    let seconds = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok());
    seconds.unwrap_or_else(|| panic!("/proc/uptime is {uptime:?}"))
}

async fn lun_that_is_seen_twice_is_refused(fixture: &Fixture) {
    let disk = fixture.absent_disk();
    for (target, lun) in [(150, 0), (150, 256), (256, 1)] {
        let mut attachment = disk.attachment(&fixture.container, PATH);
        (
            attachment.address.mut_or_insert_default().target,
            attachment.address.mut_or_insert_default().lun,
        ) = (target, lun);
        let answer = fixture.attach(vec![attachment], fixture.short_limit()).await;
        assert_refused(&answer.failure, Reason::REASON_INVALID_REQUEST);
    }
}
