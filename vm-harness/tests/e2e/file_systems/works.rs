//! What the host wrote is read in the container, what the container wrote is read by the host, and
//! nothing is left in between.

use rstest::rstest;
use vm_harness::{Cgroup, FileSystem, Machine, Snapshot, random_bytes};

use super::{
    super::{MIB, boot, host_failures::claim_is_free},
    HELLO, assert_hello, mounted, options, shell, unmount,
};

#[rstest]
#[case::cgroup_v1(Cgroup::V1, &[FileSystem::Ext4])]
#[case::cgroup_v2(Cgroup::V2, &[FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs])]
#[tokio::test]
async fn host_and_container_read_what_the_other_wrote(
    #[case] cgroup: Cgroup,
    #[case] kinds: &[FileSystem],
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let (container, sibling) = (sandbox.start_container().await, sandbox.start_container().await);
    let both = [&container, &sibling];
    let before = Snapshot::of(&sandbox, &both).await;
    for &kind in kinds {
        let volume = kind.volume(&[HELLO]);
        let path = format!("/data/new/{kind}");
        let plugged = sandbox.mount(&container, &volume, &path).await;
        assert_eq!(plugged.result, "attached");
        assert_eq!(plugged.text("mount_path"), path);
        assert_hello(&container, &path).await;
        let (mount, _) = options(&container, &path).await;
        for option in ["rw", "nosuid", "nodev"] {
            assert!(mount.split(',').any(|it| it == option), "{kind} has no {option}: {mount}");
        }
        // Neither a node of the disk nor the right to use one.
        let now = Snapshot::of(&sandbox, &both).await;
        assert_eq!(now.container_devices, before.container_devices, "{kind}");
        assert_eq!(now.device_filters, before.device_filters, "{kind}");
        // The containers share a root directory, and so the mount point, but no mount.
        assert_eq!(shell(&sibling, &format!("ls -A {path}")).await, "", "{kind}");
        assert_eq!(sandbox.mount(&container, &volume, &path).await.result, "unchanged");

        let written = random_bytes(MIB as usize);
        container.exec_with_input(&["sh", "-c", &format!("cat > {path}/file")], &written).await;
        let gone = unmount(&sandbox, &container, &path).await;
        assert_eq!((gone.result.as_str(), gone.id()), ("detached", plugged.id()));
        before.assert_unchanged(&sandbox, &both).await;
        assert_eq!(shell(&container, "ls -d /data || true").await, "", "{kind}: made, and removed");
        assert!(claim_is_free(&volume), "{kind}");
        kind.assert_consistent(&volume);
        assert!(kind.read(&volume, "file") == written, "{kind}: the host reads other bytes");

        sandbox.mount(&container, &volume, &path).await;
        assert!(container.read(&format!("{path}/file"), 0..MIB).await == written, "{kind}");
        unmount(&sandbox, &container, &path).await;
    }
}

/// What is made by other programs, or cannot be written at all.
#[rstest]
#[tokio::test]
async fn every_kind_of_file_system_is_mounted() {
    let sandbox = boot(&Machine::default()).await;
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for (kind, files) in [
        (FileSystem::Vfat, &[][..]),
        (FileSystem::Erofs, &[HELLO]),
        (FileSystem::Squashfs, &[HELLO]),
    ] {
        let volume = kind.volume(files);
        let mut plug = sandbox.mount_command(&container, &[(&volume, "/mnt")]);
        if kind == FileSystem::Vfat {
            plug.run().await.succeeded(sandbox.guest());
            shell(&container, "echo written > /mnt/file").await;
        } else {
            plug = plug.args(["--read-only"]);
            plug.run().await.succeeded(sandbox.guest());
            assert_hello(&container, "/mnt").await;
        }
        unmount(&sandbox, &container, "/mnt").await;
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert_eq!(shell(&container, "ls -A /mnt").await, "", "{kind}: it was there before");
        kind.assert_consistent(&volume);
    }
    let volume = FileSystem::Ext4.volume(&[HELLO]);
    let plug = sandbox.mount_command(&container, &[(&volume, "/mnt")]);
    let plug = plug.args(["--fs-type", "ext4", "--mount-options", "noatime,commit=30"]);
    plug.run().await.succeeded(sandbox.guest());
    let (mount, file_system) = options(&container, "/mnt").await;
    assert!(
        mount.contains("noatime") && file_system.contains("commit=30"),
        "{mount} {file_system}"
    );
    // What was asked for is what a repeat compares.
    let other = sandbox.mount_command(&container, &[(&volume, "/mnt")]).run().await;
    let (_, message) = other.failed_with(4);
    assert!(message.contains("option"), "{message}");
    super::super::hot_unplug::unplug(&sandbox, &mounted(&container, "/mnt")).await;
}
