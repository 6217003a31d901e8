//! What becomes of a mounted file system when its container, or a step, fails.

use rstest::rstest;
use serde_json::Value;
use vm_harness::{FileSystem, Machine, Sandbox, Snapshot};

use super::{
    super::{
        boot_with_faults,
        host_failures::claim_is_free,
        repair::{only, repair, state},
        sandbox, set_guest_faults,
    },
    assert_hello, ext4, shell, unmount, unmount_command,
};

/// The plugin's fault points from the mount on, and those of a hot-unplug until it has ended.
const ATTACH_POINTS: [&str; 5] = [
    "attach-after-verify",
    "attach-after-node",
    "attach-after-prepared",
    "attach-after-filter",
    "attach-after-publish",
];
const DETACH_POINTS: [&str; 5] = [
    "detach-after-release",
    "detach-after-sync",
    "detach-after-unlink",
    "detach-after-unmount",
    "detach-after-check",
];

#[rstest]
#[case::stopped(false)]
#[case::removed(true)]
#[tokio::test]
async fn file_system_of_a_container_that_is_gone_is_freed_by_repair(
    #[future(awt)] sandbox: Sandbox,
    #[case] removed: bool,
) {
    let witness = sandbox.start_container().await;
    let (container, volume) = (sandbox.start_container().await, ext4());
    sandbox.mount(&container, &volume, "/data").await;
    shell(&container, "echo written > /data/file").await;
    container.kill().await.unwrap();
    if removed {
        container.remove().await.unwrap();
        sandbox.run_directory().remove_container(container.id());
    }
    assert_eq!(state(&sandbox).await, "stale: container_gone");
    let repaired = repair(&sandbox, 0, &[]).await;
    assert_eq!(only(&repaired), ["stale: container_gone", "rolled_back", "gone"], "{repaired}");
    assert!(claim_is_free(&volume));
    FileSystem::Ext4.assert_consistent(&volume);
    assert_eq!(FileSystem::Ext4.read(&volume, "file"), b"written\n");
    sandbox.mount(&witness, &volume, "/data").await;
    assert_hello(&witness, "/data").await;
    unmount(&sandbox, &witness, "/data").await;
}

/// The new container with the same ID has no mount. A repeat mounts it there.
#[rstest]
#[tokio::test]
async fn file_system_of_a_restarted_container_is_stale_until_a_command_handles_it(
    #[future(awt)] sandbox: Sandbox,
    #[values("hot-plug", "hot-unplug", "repair")] command: &str,
) {
    let (container, volume) = (sandbox.start_container().await, ext4());
    let plugged = sandbox.mount(&container, &volume, "/data").await;
    container.kill().await.unwrap();
    let container = sandbox.restart_container(&container).await.unwrap();
    assert_eq!(state(&sandbox).await, "stale: container_restarted");
    match command {
        "hot-plug" => {
            let again = sandbox.mount(&container, &volume, "/data").await;
            assert_eq!((again.result.as_str(), again.id()), ("attached", plugged.id()));
            assert_eq!(state(&sandbox).await, "attached");
            assert_hello(&container, "/data").await;
            unmount(&sandbox, &container, "/data").await;
        }
        "hot-unplug" => drop(unmount(&sandbox, &container, "/data").await),
        _ => {
            let repaired = repair(&sandbox, 0, &[]).await;
            assert_eq!(only(&repaired)[1..], ["rolled_back", "gone"], "{repaired}");
        }
    }
    assert!(claim_is_free(&volume));
    let now = Snapshot::of(&sandbox, &[&container]).await;
    assert!(now.nodes.is_empty() && now.fdsets.is_empty(), "{now:#?}");
}

#[rstest]
#[tokio::test]
async fn failure_at_any_step_leaves_neither_mount_nor_directory() {
    let sandbox = boot_with_faults(&Machine::default()).await;
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volumes = [ext4(), ext4()];
    let pairs = [(&volumes[0], "/data/first"), (&volumes[1], "/data/second")];
    for point in ATTACH_POINTS {
        set_guest_faults(&sandbox, &format!("{point}=error\n")).await;
        let failed = sandbox.mount_command(&container, &pairs).run().await;
        assert_eq!(failed.status, 1, "{point}: {}{}", failed.stdout, failed.stderr);
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert_eq!(shell(&container, "ls -d /data || true").await, "", "{point}");
    }
    set_guest_faults(&sandbox, "").await;
    sandbox.mount_command(&container, &pairs).run().await.succeeded(sandbox.guest());
    // A detach that fails in the middle mounts it again.
    let mounted = Snapshot::of(&sandbox, &[&container]).await;
    for point in DETACH_POINTS {
        set_guest_faults(&sandbox, &format!("{point}=error\n")).await;
        let failed = unmount_command(&sandbox, &container, "/data/first").run().await;
        assert_eq!(failed.status, 1, "{point}: {}{}", failed.stdout, failed.stderr);
        let left = Snapshot::of(&sandbox, &[&container]).await;
        let mounts = |it: &Snapshot| it.container_mounts.values().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(mounts(&left), mounts(&mounted), "{point}");
        assert_hello(&container, "/data/first").await;
        assert_eq!(repair(&sandbox, 0, &[]).await["error"], Value::Null);
        assert_hello(&container, "/data/first").await;
    }
    set_guest_faults(&sandbox, "").await;
    for (_, path) in pairs {
        unmount(&sandbox, &container, path).await;
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    volumes.iter().for_each(|volume| FileSystem::Ext4.assert_consistent(volume));
}
