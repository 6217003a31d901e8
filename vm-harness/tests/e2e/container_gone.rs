//! What happens to a volume when something disappears unexpectedly: its container stops, is removed
//! or is restarted, or the event of its device in QEMU is missed.

use rstest::rstest;
use serde_json::Value;
use vm_harness::{Cgroup, Container, Machine, Sandbox, Snapshot, Volume};

use super::{
    MIB, boot,
    host_failures::claim_is_free,
    hot_unplug::verb,
    repair::{only, repair, state},
    sandbox,
};

async fn unplug(sandbox: &Sandbox, container: &Container) -> Value {
    let at = ["--container", container.id(), "--device-path", "/dev/xvda"];
    let finished = verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &at).run().await;
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    finished.json()
}

#[rstest]
#[case::stopped(false)]
#[case::removed(true)]
#[tokio::test]
async fn volume_of_a_container_that_is_gone_is_freed_by_repair(
    #[future(awt)] sandbox: Sandbox,
    #[case] removed: bool,
) {
    let witness = sandbox.start_container().await;
    let (container, volume) = (sandbox.start_container().await, Volume::loop_device(MIB));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.kill().await.unwrap();
    if removed {
        container.remove().await.unwrap();
        sandbox.run_directory().remove_container(container.id());
    }
    assert_eq!(state(&sandbox).await, "stale: container_gone");
    let refused = sandbox.hot_plug_command(&witness, &[(&volume, "/dev/xvda")]).run().await;
    let (reason, message) = refused.failed_with(4);
    assert!(
        reason == "volume_taken" && message.contains(container.id()),
        "it names the holder: {message}"
    );
    let repaired = repair(&sandbox, 0, &[]).await;
    assert_eq!(only(&repaired), ["stale: container_gone", "rolled_back", "gone"], "{repaired}");
    assert!(claim_is_free(&volume));
    sandbox.hot_plug(&witness, &volume, "/dev/xvda").await;
    assert_eq!(witness.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

/// The new container with the same ID did not request the volume, and has neither its node nor its
/// device right.
#[rstest]
#[tokio::test]
async fn volume_of_a_restarted_container_is_stale_until_a_command_handles_it(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
    #[values("hot-plug", "hot-unplug", "repair")] command: &str,
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let (container, volume) = (sandbox.start_container().await, Volume::loop_device(MIB));
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(state(&sandbox).await, "attached");
    container.kill().await.unwrap();
    let container = sandbox.restart_container(&container).await.unwrap();
    assert_eq!(state(&sandbox).await, "stale: container_restarted");
    let fresh = Snapshot::of(&sandbox, &[&container]).await;
    match command {
        "hot-plug" => {
            let again = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
            assert_eq!((again.result.as_str(), again.id()), ("attached", plugged.id()));
            assert_eq!(state(&sandbox).await, "attached");
            assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
            assert_eq!(
                sandbox.hot_plug(&container, &volume, "/dev/xvda").await.result,
                "unchanged"
            );
            assert_eq!(repair(&sandbox, 0, &[]).await["result"], "unchanged");
            unplug(&sandbox, &container).await;
        }
        "hot-unplug" => drop(unplug(&sandbox, &container).await),
        _ => {
            let repaired = repair(&sandbox, 0, &[]).await;
            assert_eq!(
                only(&repaired),
                ["stale: container_restarted", "rolled_back", "gone"],
                "{repaired}"
            );
        }
    }
    assert!(claim_is_free(&volume));
    let now = Snapshot::of(&sandbox, &[&container]).await;
    assert_eq!(now.container_devices, fresh.container_devices);
    assert!(now.nodes.is_empty() && now.fdsets.is_empty(), "{now:#?}");
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

/// The command is killed between `device_del` and its event, which is not received then.
#[rstest]
#[tokio::test]
async fn device_that_was_removed_without_a_listener_is_detected(
    #[future(awt)] sandbox: Sandbox,
    #[values(true, false)] by_repair: bool,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let at = ["--container", container.id(), "--device-path", "/dev/xvda"];
    let killed = sandbox.ecr_runtime_with_faults("remove-before-device-deleted=kill");
    let killed = verb(killed, &sandbox, "hot-unplug", &at).run().await;
    assert_eq!(killed.status, 128 + 9, "{}{}", killed.stdout, killed.stderr);
    // QEMU continues by itself. The next command finds that the device still exists, or is gone.
    if by_repair {
        let repaired = repair(&sandbox, 0, &[]).await;
        assert_eq!(only(&repaired), ["incomplete", "completed", "gone"], "{repaired}");
    } else {
        assert_eq!(unplug(&sandbox, &container).await["result"], "detached");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}
