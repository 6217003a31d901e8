//! Containers with a user namespace get an idmapped mount: their root owns what root owns on the
//! volume.

use rstest::rstest;
use vm_harness::{ContainerOptions, FileSystem, Sandbox, Snapshot};

use super::{super::sandbox, HELLO, assert_hello, shell, unmount};

#[rstest]
#[tokio::test]
async fn root_of_the_container_owns_what_root_owns_on_the_volume(#[future(awt)] sandbox: Sandbox) {
    let options = ContainerOptions { user_namespace: true, ..ContainerOptions::default() };
    let container = sandbox.start_container_with(&options).await;
    let plain = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for kind in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        let volume = kind.volume(&[HELLO]);
        sandbox.mount(&container, &volume, "/dev/data/volume").await;
        assert_hello(&container, "/dev/data/volume").await;
        assert_eq!(
            shell(&container, "stat -c %u:%g /dev/data/volume/hello").await,
            "0:0\n",
            "{kind}"
        );
        shell(
            &container,
            "echo written > /dev/data/volume/file && chown 7:8 /dev/data/volume/file",
        )
        .await;
        unmount(&sandbox, &container, "/dev/data/volume").await;
        before.assert_unchanged(&sandbox, &[&container]).await;
        kind.assert_consistent(&volume);
        assert_eq!(kind.read(&volume, "file"), b"written\n");

        // On the volume they are the users that the container sees, not those of the guest.
        sandbox.mount(&plain, &volume, "/mnt").await;
        let owner = shell(&plain, "stat -c %u:%g /mnt/file").await;
        assert_eq!(owner, "7:8\n", "{kind}");
        unmount(&sandbox, &plain, "/mnt").await;
    }
}

/// squashfs has no idmapped mounts in the kernel of the tests, 6.1.
#[rstest]
#[tokio::test]
async fn file_system_without_idmapped_mounts_is_refused(#[future(awt)] sandbox: Sandbox) {
    let options = ContainerOptions { user_namespace: true, ..ContainerOptions::default() };
    let container = sandbox.start_container_with(&options).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = FileSystem::Squashfs.volume(&[HELLO]);
    let plug = sandbox.mount_command(&container, &[(&volume, "/mnt")]).args(["--read-only"]);
    let (reason, message) = plug.run().await.failed_with(10);
    assert!(reason == "unsupported" && message.contains("squashfs"), "{reason}: {message}");
    before.assert_unchanged(&sandbox, &[&container]).await;
}
