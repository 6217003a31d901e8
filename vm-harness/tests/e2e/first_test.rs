use vm_harness::{Machine, Sandbox, Snapshot, Volume};

#[tokio::test]
async fn volume_is_the_same_in_the_container_and_gone_afterwards() {
    // A VM with an agent, and a running container. The VM ends with the test.
    let sandbox = Sandbox::boot(&Machine::default()).await.expect("a sandbox");
    let container = sandbox.start_container().await;
    // Everything that a hot-plug can change, in QEMU and in the guest.
    let before = Snapshot::of(&sandbox, &[&container]).await;

    // A raw image of random bytes, and the command under test.
    let volume = Volume::image(1 << 20);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(plugged.result, "attached");
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));

    // A refused call reports the reason in its exit status (4, a conflict) and in JSON.
    let other = Volume::image(1 << 20);
    let refused = sandbox.hot_plug_command(&container, &[(&other, "/dev/xvda")]).run().await;
    let (reason, message) = refused.failed_with(4);
    assert_eq!(reason, "path_taken", "{message}");

    sandbox.unplug(&plugged).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}
