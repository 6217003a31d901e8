//! `Detach` of an idle volume: what a host needs to roll back a hot-plug whose reply it lost.

use block_volume_api::block_volume::Reason;
use rstest::rstest;
use vm_harness::{Cgroup, Machine, Sandbox, Snapshot, Volume};

use super::{MIB, boot, ext4_image, mount_in_guest, sandbox};

#[rstest]
#[tokio::test]
async fn detach_restores_the_previous_state(#[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(2 * MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    sandbox.unplug(&plugged).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    let again = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(again.id(), plugged.id(), "the same volume gets the same ID again");
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

#[rstest]
#[tokio::test]
async fn second_detach_is_unchanged(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let first = sandbox.detach(&plugged).await.unwrap();
    assert!(first.failure.is_none() && !first.detached[0].unchanged, "{first}");
    let second = sandbox.detach(&plugged).await.unwrap();
    assert!(second.failure.is_none() && second.detached[0].unchanged, "{second}");
}

#[rstest]
#[tokio::test]
async fn volume_with_a_holder_is_not_detached(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = ext4_image(8 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    // An exclusive holder in the guest. For the block layer a mount is one.
    mount_in_guest(&sandbox, &plugged).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let answer = sandbox.detach(&plugged).await.unwrap();
    assert_eq!(answer.failure.reason.enum_value().unwrap(), Reason::REASON_BUSY, "{answer}");
    before.assert_unchanged(&sandbox, &[&container]).await;
    sandbox.observer().shell("umount /mnt").await;
    sandbox.unplug(&plugged).await;
}
