//! Read-only volumes: the mount, the file system and the disk are.

use std::process::Command;

use rstest::rstest;
use vm_harness::{FileSystem, LoopOptions, Sandbox, Snapshot};

use super::{super::sandbox, assert_hello, ext4, options, unmount};

#[rstest]
#[tokio::test]
async fn read_only_file_system_is_never_written(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for kind in [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs] {
        let volume = kind.volume(&[super::HELLO]);
        let written = super::written(&volume);
        let plug = sandbox.mount_command(&container, &[(&volume, "/mnt")]).args(["--read-only"]);
        let plugged = plug.run().await.succeeded(sandbox.guest()).remove(0);
        assert_eq!(plugged.volume["read_only"], true);
        assert_hello(&container, "/mnt").await;
        let (mount, file_system) = options(&container, "/mnt").await;
        assert!(mount.starts_with("ro,") && file_system.starts_with("ro"), "{mount} {file_system}");
        let error = container.exec_fails(&["touch", "/mnt/new"]).await;
        assert!(error.contains("Read-only file system"), "{kind}: {error}");
        unmount(&sandbox, &container, "/mnt").await;
        assert_eq!(super::written(&volume), written, "{kind}");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
}

/// The journal cannot be replayed on a disk that cannot be written, and is not left out silently.
#[rstest]
#[tokio::test]
async fn dirty_journal_on_a_read_only_disk_is_refused_with_the_kernels_reason(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let image = ext4();
    let dirty = ["-w", "-R", "feature needs_recovery", image.name()];
    let made = Command::new("debugfs").args(dirty).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let written = super::written(&image);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let plug = sandbox.mount_command(&container, &[(&image, "/mnt")]);
    let refused = plug.clone().args(["--read-only"]).run().await;
    let (reason, message) = refused.failed_with(9);
    assert_eq!(reason, "file_system_refused", "{message}");
    assert!(message.contains("write access unavailable"), "the kernel's words: {message}");
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(super::written(&image), written);
    // Where it can be written, the guest's kernel replays it.
    plug.run().await.succeeded(sandbox.guest());
    assert_hello(&container, "/mnt").await;
    unmount(&sandbox, &container, "/mnt").await;
    FileSystem::Ext4.assert_consistent(&image);
}

/// A device of the host that refuses writes needs the option, as for a device path.
#[rstest]
#[tokio::test]
async fn read_only_source_needs_the_option(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let options = LoopOptions { read_only: true, ..LoopOptions::default() };
    let volume = FileSystem::Ext4.loop_device(&[super::HELLO], options);
    let plug = sandbox.mount_command(&container, &[(&volume, "/mnt")]);
    let (_, message) = plug.run().await.failed_with(6);
    assert!(message.contains("is read-only"), "{message}");
    plug.args(["--read-only"]).run().await.succeeded(sandbox.guest());
    assert_hello(&container, "/mnt").await;
    unmount(&sandbox, &container, "/mnt").await;
}
