//! `--fs-group`: the files get the group, at once or only where the root has another one.

use std::time::{Duration, Instant};

use rstest::rstest;
use vm_harness::{Container, EcrRuntime, FileSystem, Sandbox, Snapshot, Volume};

use super::{super::sandbox, HELLO, shell, superblocks, unmount};

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

/// How many files an image has that takes long.
const MANY: usize = 24_000;

/// Plugs a volume and gives its files to this group.
fn give(sandbox: &Sandbox, container: &Container, volume: &Volume, group: &str) -> EcrRuntime {
    sandbox.mount_command(container, &[(volume, "/mnt")]).args(["--fs-group", group])
}

/// At the deadline the work ends, the volume is not mounted, and what was done stays done: a repeat
/// needs less, until one succeeds. How fast this machine is decides about the time that is given.
#[rstest]
#[tokio::test]
async fn huge_directory_is_given_in_parts_when_the_time_is_short(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let none = superblocks(&sandbox).await;
    let names: Vec<String> = (0..MANY).map(|index| format!("file-{index:05}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let volume = FileSystem::Ext4.volume_of(128 << 20, &files);
    let took = async |call: EcrRuntime| {
        let began = Instant::now();
        call.run().await.succeeded(sandbox.guest());
        let took = began.elapsed();
        unmount(&sandbox, &container, "/mnt").await;
        took
    };
    let plain = took(sandbox.mount_command(&container, &[(&volume, "/mnt")])).await;
    let all = took(give(&sandbox, &container, &volume, "1")).await;
    // The guest gets three quarters of it.
    let limit = (plain + all) * 2 / 3;
    println!("without a group in {plain:?}, with all files in {all:?}, limited to {limit:?}");
    assert!(all > plain * 3 / 2, "it takes too short to be divided: {plain:?}, {all:?}");
    let limit = format!("{}ms", limit.as_millis());
    let mut counts = Vec::new();
    let deadline = Instant::now() + sandbox.guest().scaled(Duration::from_secs(60));
    loop {
        assert!(Instant::now() < deadline, "it never ends: {counts:?}");
        let call = give(&sandbox, &container, &volume, "2").args(["--timeout", &limit]);
        let finished = call.run().await;
        if finished.status == 0 {
            break;
        }
        let (reason, message) = finished.failed_with(7);
        // Where the machine is too busy for the guest's reply, the host says no number.
        if reason != "timed_out" {
            assert_eq!(reason, "owners_incomplete", "{message}");
            let words = message.split("the group of ").nth(1).unwrap_or_default();
            counts.push(words.split(' ').next().unwrap().parse::<usize>().expect(&message));
        }
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert_eq!(superblocks(&sandbox).await, none);
    }
    println!("{counts:?} files until the time was over");
    assert!(!counts.is_empty() && counts.iter().all(|&count| count < MANY), "{counts:?}");
    let all = "find /mnt -name 'file-*' | xargs stat -c %g | grep -cx 2";
    assert_eq!(shell(&container, all).await.trim(), MANY.to_string());
    unmount(&sandbox, &container, "/mnt").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    FileSystem::Ext4.assert_consistent(&volume);
}
