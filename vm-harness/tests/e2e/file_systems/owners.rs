//! `--fs-group`: the files get the group, at once or only where the root has another one.

use rstest::rstest;
use vm_harness::{FileSystem, Sandbox, Snapshot};

use super::{super::sandbox, HELLO, shell, unmount};

#[rstest]
#[tokio::test]
async fn files_get_the_group_and_the_group_can_write(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = FileSystem::Ext4.volume(&[HELLO, ("other", b"")]);
    let group = |more: &[&str]| {
        let plug = sandbox.mount_command(&container, &[(&volume, "/mnt")]);
        plug.args(["--fs-group", "2000"]).args(more)
    };
    let stat = "stat -c '%n %u:%g %A' /mnt /mnt/hello /mnt/other";
    group(&[]).run().await.succeeded(sandbox.guest());
    let expected =
        "/mnt 0:2000 drwxrwsr-x\n/mnt/hello 0:2000 -rw-rw-r--\n/mnt/other 0:2000 -rw-rw-r--\n";
    assert_eq!(shell(&container, stat).await, expected);
    // A new file of another user has it, too.
    shell(&container, "touch /mnt/new && chown 0:7 /mnt/other").await;
    assert_eq!(shell(&container, "stat -c %g /mnt/new").await, "2000\n");
    unmount(&sandbox, &container, "/mnt").await;

    // The root matches: nothing else is looked at, unless that is asked for.
    group(&["--fs-group-change-policy", "OnRootMismatch"]).run().await.succeeded(sandbox.guest());
    assert_eq!(shell(&container, "stat -c %g /mnt/other").await, "7\n");
    unmount(&sandbox, &container, "/mnt").await;
    group(&["--fs-group-change-policy", "Always"]).run().await.succeeded(sandbox.guest());
    assert_eq!(shell(&container, "stat -c %g /mnt/other").await, "2000\n");
    unmount(&sandbox, &container, "/mnt").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    FileSystem::Ext4.assert_consistent(&volume);
}
