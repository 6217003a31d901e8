//! What becomes of a mounted file system when its container, a step, or the agent fails.

use std::time::Duration;

use rstest::rstest;
use serde_json::Value;
use vm_harness::{
    Container, ContainerOptions, EcrRuntime, FileSystem, Finished, Machine, Sandbox, Snapshot,
    Volume,
};

use super::{
    super::{
        boot, boot_with_faults,
        host_failures::claim_is_free,
        repair::{only, repair, state},
        sandbox, set_guest_faults, wait_for_fault_point,
    },
    assert_hello, ext4, shell, superblocks, unmount, unmount_command,
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

/// Where the thread of a request ends in the middle, as a bug of the plugin would do it, and what
/// `repair` finds: the state, the action, the state after it. An attach is rolled back at once. A
/// detach stays as it is.
const DEATHS_OF_A_THREAD: [(&str, Option<[&str; 3]>); 6] = [
    // The mount is made, and attached nowhere.
    ("attach-after-node", None),
    // It is in the container, and not committed.
    ("attach-after-publish", None),
    ("attach-after-attached", None),
    ("detach-after-sync", Some(["attached", "kept", "attached"])),
    // Nothing is mounted any more: it is mounted again, as it was committed.
    ("detach-after-unlink", Some(["incomplete", "completed", "attached"])),
    ("detach-after-unmount", Some(["incomplete", "completed", "attached"])),
];

#[rstest]
#[tokio::test]
async fn request_whose_thread_dies_is_rolled_back_or_repaired() {
    let sandbox = boot_with_faults(&Machine::default()).await;
    let container = sandbox.start_container().await;
    let volume = ext4();
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let none = superblocks(&sandbox).await;
    for (point, repaired) in DEATHS_OF_A_THREAD {
        let call = match repaired {
            None => sandbox.mount_command(&container, &[(&volume, "/data/volume")]),
            Some(_) => {
                sandbox.mount(&container, &volume, "/data/volume").await;
                assert_ne!(superblocks(&sandbox).await, none, "{point}: it is seen");
                unmount_command(&sandbox, &container, "/data/volume")
            }
        };
        set_guest_faults(&sandbox, &format!("{point}=panic\n")).await;
        let failed = call.run().await;
        assert_ne!(failed.status, 0, "{point}: {}", failed.stdout);
        set_guest_faults(&sandbox, "").await;
        if let Some(expected) = repaired {
            let report = repair(&sandbox, 0, &[]).await;
            assert_eq!(only(&report), expected, "{point}: {report}");
            assert_hello(&container, "/data/volume").await;
            unmount(&sandbox, &container, "/data/volume").await;
        }
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert_eq!(superblocks(&sandbox).await, none, "{point}");
        assert_eq!(shell(&container, "ls -d /data || true").await, "", "{point}");
        assert!(claim_is_free(&volume), "{point}");
        FileSystem::Ext4.assert_consistent(&volume);
    }
}

/// The process has a copy of the mount in a namespace of its own. By force every namespace loses
/// it; the thread dies when it has left the container's.
#[rstest]
#[tokio::test]
async fn forced_unplug_whose_thread_dies_after_the_unmount_is_repaired() {
    let sandbox = boot_with_faults(&Machine::default()).await;
    let capabilities = vec!["CAP_SYS_ADMIN".to_owned()];
    let options = ContainerOptions { capabilities, ..ContainerOptions::default() };
    let container = sandbox.start_container_with(&options).await;
    let volume = ext4();
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let none = superblocks(&sandbox).await;
    sandbox.mount(&container, &volume, "/mnt").await;
    let hold = "busybox unshare --mount --propagation private tail -f /dev/null \
                </dev/null >/dev/null 2>&1 & until busybox pidof tail; do sleep 0.01; done";
    shell(&container, hold).await;
    set_guest_faults(&sandbox, "detach-after-unlink=panic\n").await;
    let force = unmount_command(&sandbox, &container, "/mnt").args(["--force"]);
    assert_ne!(force.run().await.status, 0);
    set_guest_faults(&sandbox, "").await;
    let report = repair(&sandbox, 0, &[]).await;
    assert_eq!(only(&report), ["incomplete", "completed", "attached"], "{report}");
    assert_hello(&container, "/mnt").await;
    // The process has no copy any more, and holds nothing.
    unmount(&sandbox, &container, "/mnt").await;
    assert_eq!(superblocks(&sandbox).await, none);
    assert!(claim_is_free(&volume));
    shell(&container, "busybox killall tail").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    FileSystem::Ext4.assert_consistent(&volume);
}

/// The agent is PID 1: when it dies the guest's kernel panics and QEMU ends, whatever the request
/// had done. The host has its volume again, with what was synced, and the next sandbox mounts it.
#[rstest]
#[case::mount_is_made("attach-after-node")]
#[case::mount_is_not_committed("attach-after-publish")]
#[case::mount_is_unmounted("detach-after-unlink")]
#[tokio::test]
async fn volume_survives_an_agent_that_dies_in_the_middle(#[case] point: &str) {
    let sandbox = boot_with_faults(&Machine::default()).await;
    let (container, volume) = (sandbox.start_container().await, ext4());
    let is_detach = point.starts_with("detach");
    let call = mount_or_unmount(&sandbox, &container, &volume, is_detach).await;
    set_guest_faults(&sandbox, &format!("{point}=wait\n")).await;
    let seen = sandbox.guest().console().text().len();
    let run = call.start();
    wait_for_fault_point(&sandbox, seen, point).await;
    sandbox.expect_kernel_fault();
    // There is no reply.
    let _ = sandbox.observer().write("/proc/sysrq-trigger", "c").await;
    let limit = sandbox.guest().scaled(Duration::from_secs(10));
    let ended = tokio::time::timeout(limit, sandbox.guest().ended()).await;
    ended.unwrap_or_else(|_| panic!("QEMU did not end within {limit:?}"));
    let finished = Finished::new(&run.wait_with_output().await.unwrap(), Duration::ZERO);
    assert_eq!(finished.status, 14, "{}{}", finished.stdout, finished.stderr);
    assert_eq!(repair(&sandbox, 14, &[]).await["volumes"], Value::Null);
    assert!(claim_is_free(&volume));

    let next = boot(&Machine::default()).await;
    let container = next.start_container().await;
    next.mount(&container, &volume, "/data").await;
    assert_hello(&container, "/data").await;
    let synced = if is_detach { "synced\n" } else { "" };
    assert_eq!(shell(&container, "cat /data/file 2>/dev/null || true").await, synced);
    unmount(&next, &container, "/data").await;
    FileSystem::Ext4.assert_consistent(&volume);
}

/// Returns the hot-plug of a volume, or its hot-unplug after it was plugged and written.
async fn mount_or_unmount(
    sandbox: &Sandbox,
    container: &Container,
    volume: &Volume,
    is_detach: bool,
) -> EcrRuntime {
    if !is_detach {
        return sandbox.mount_command(container, &[(volume, "/data")]);
    }
    sandbox.mount(container, volume, "/data").await;
    shell(container, "echo synced > /data/file && sync").await;
    unmount_command(sandbox, container, "/data")
}
