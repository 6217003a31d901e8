//! Faults that can hit the plugin in the guest: events that never come or are lost, a node that is
//! removed while it is created, a busy processor. One VM for all of them. Each fault is set, takes
//! effect, and is removed.

use std::time::Duration;

use rstest::rstest;
use vm_harness::{Finished, Scan, Snapshot, Volume};

use super::{
    MIB, boot_with_faults, guarded,
    hot_unplug::{at, unplug},
    qmp_faults::short,
    set_guest_faults, wait_for_fault_point,
};

#[rstest]
#[tokio::test]
async fn plug_succeeds_or_is_rolled_back_with_each_fault_in_the_guest(
    #[values(Scan::None, Scan::Async)] scan: Scan,
) {
    let sandbox = boot_with_faults(&vm_harness::Machine { scan, ..Default::default() }).await;
    // With a device filter, so that the node is made in the container's file system.
    let container = sandbox.start_container_with(&guarded()).await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let plug = || sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);

    // Each event is lost, and the kernel reports it: the disk is found in sysfs.
    set_guest_faults(&sandbox, "uevent=overflow\n").await;
    plug().run().await.succeeded(sandbox.guest());
    // With another scan mode the disk exists before the plugin waits for its event.
    let noticed = sandbox.guest().console().text().contains("uevents were lost");
    assert!(noticed || scan == Scan::Async, "the plugin did not notice that events were lost");
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    set_guest_faults(&sandbox, "").await;
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    before.assert_unchanged(&sandbox, &[&container]).await;

    // Each event is lost, and the kernel does not report it. The disk would be found if it existed
    // before the request. Here the hot-plug waits for the event.
    if scan == Scan::None {
        set_guest_faults(&sandbox, "uevent=lost\n").await;
        let finished = plug().args(short(&sandbox)).run().await;
        let (reason, message) = finished.failed_with(7);
        assert!(reason == "timed_out" && message.contains("a disk with serial"), "{message}");
        set_guest_faults(&sandbox, "").await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }

    for (stage, fault, status, reason, awaited) in [
        // Other processes use the processor for ten minutes: when the request continues, its
        // deadline has passed.
        ("lookup", "clock=value:600000", 7, "timed_out", "the look-up"),
        ("filter", "clock=value:600000", 7, "timed_out", "the device filter"),
        // The container removes the temporary node before it is published.
        ("node", "rm /dev/.ecrblk-*", 1, "guest_system", "/dev/xvda"),
        ("filter", "rm /dev/.ecrblk-*", 1, "guest_system", "/dev/xvda"),
    ] {
        let what = format!("{fault} after {stage}");
        set_guest_faults(&sandbox, &format!("attach-after-{stage}=wait\n")).await;
        let seen = sandbox.guest().console().text().len();
        let command = plug().start();
        wait_for_fault_point(&sandbox, seen, &format!("attach-after-{stage}")).await;
        if fault.starts_with("rm") {
            container.exec(&["sh", "-c", fault]).await;
            set_guest_faults(&sandbox, "").await;
        } else {
            set_guest_faults(&sandbox, &format!("{fault}\n")).await;
        }
        let finished = Finished::new(&command.wait_with_output().await.unwrap(), Duration::ZERO);
        let (reported, message) = finished.failed_with(status);
        assert!(reported == reason && message.contains(awaited), "{what}: {reported}: {message}");
        set_guest_faults(&sandbox, "").await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}
