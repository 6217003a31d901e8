//! What can befall the plugin in the guest: events that never come or are lost, a node that goes
//! while it is made, a processor that is starved. One VM for all of it; each fault is set, met, and
//! taken away again.

use std::time::Duration;

use rstest::rstest;
use vm_harness::{Finished, Scan, Snapshot, Volume};

use super::{
    MIB, boot_with_faults,
    hot_unplug::{at, unplug},
    qmp_faults::short,
    set_guest_faults, wait_for_fail_point,
};

#[rstest]
#[tokio::test]
async fn what_becomes_of_a_plug_whose_guest_is_unlucky(
    #[values(Scan::None, Scan::Async)] scan: Scan,
) {
    let sandbox = boot_with_faults(&vm_harness::Machine { scan, ..Default::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let plug = || sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);

    // Each event is lost, and the kernel says so: the disk is found in sysfs.
    set_guest_faults(&sandbox, "uevent=overflow\n").await;
    plug().run().await.succeeded(sandbox.guest());
    // With another scan the disk is there before anybody waits for its event.
    let noticed = sandbox.guest().console().text().contains("uevents were lost");
    assert!(noticed || scan == Scan::Async, "the plugin never heard that events were lost");
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    set_guest_faults(&sandbox, "").await;
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    before.assert_unchanged(&sandbox, &[&container]).await;

    // Each event is lost, and nothing says so. The disk is found where it is there before the
    // request; the plug waits for that.
    if scan == Scan::None {
        set_guest_faults(&sandbox, "uevent=lost\n").await;
        let finished = plug().args(short(&sandbox)).run().await;
        let (reason, message) = finished.failed_with(7);
        assert!(reason == "timed_out" && message.contains("a disk with serial"), "{message}");
        set_guest_faults(&sandbox, "").await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }

    for (stage, fault, status, reason, awaited) in [
        // A processor that others have for ten minutes: when the request goes on, its time is over.
        ("lookup", "clock=value:600000", 7, "timed_out", "the look-up"),
        ("filter", "clock=value:600000", 7, "timed_out", "the device filter"),
        // The container takes the node away before it gets its name, or has it under another one.
        ("node", "rm /dev/.ecrblk-*", 1, "guest_system", "/dev/xvda"),
        ("filter", "rm /dev/.ecrblk-*", 1, "guest_system", "/dev/xvda"),
    ] {
        let what = format!("{fault} after {stage}");
        set_guest_faults(&sandbox, &format!("attach-after-{stage}=wait\n")).await;
        let seen = sandbox.guest().console().text().len();
        let command = plug().start();
        wait_for_fail_point(&sandbox, seen, &format!("attach-after-{stage}")).await;
        if fault.starts_with("rm") {
            container.exec(&["sh", "-c", fault]).await;
            set_guest_faults(&sandbox, "").await;
        } else {
            set_guest_faults(&sandbox, &format!("{fault}\n")).await;
        }
        let finished = Finished::new(&command.wait_with_output().await.unwrap(), Duration::ZERO);
        let (told, message) = finished.failed_with(status);
        assert!(told == reason && message.contains(awaited), "{what}: {told}: {message}");
        set_guest_faults(&sandbox, "").await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}
