//! Devices and mounted file systems in one container, several in one call, and processes that
//! were started before.

use std::time::Duration;

use rstest::rstest;
use serde_json::Value;
use vm_harness::{Sandbox, Snapshot, Volume};

use super::{
    super::{
        MIB,
        hot_unplug::{at, query_volumes, unplug},
        sandbox,
    },
    assert_hello, ext4, mounted, shell, unmount,
};

#[rstest]
#[tokio::test]
async fn devices_and_file_systems_are_plugged_by_one_call(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let (raw, first, second) = (Volume::image(MIB), ext4(), ext4());
    let plug = sandbox
        .mount_command(&container, &[(&first, "/data/first")])
        .volumes("--device-path", &[(&raw, "/dev/xvda")])
        .volumes("--mount-path", &[(&second, "/data/second")]);
    let plugged = plug.run().await.succeeded(sandbox.guest());
    assert_eq!(plugged.len(), 3);
    assert_hello(&container, "/data/first").await;
    assert_hello(&container, "/data/second").await;
    assert_eq!(container.read("/dev/xvda", 0..4096).await, raw.bytes(0..4096));
    let volumes = query_volumes(&sandbox, "list", &[]).await;
    assert_eq!(volumes.len(), 3, "{volumes:?}");
    for (volume, path) in [(&first, "/data/first"), (&second, "/data/second")] {
        let listed = volumes.iter().find(|it| it["mount_path"] == path).unwrap();
        assert_eq!(listed["source"], volume.name(), "{listed}");
        assert_eq!(listed["state"], "attached", "{listed}");
        assert_eq!(listed["device_path"], Value::Null, "{listed}");
        let inspected = query_volumes(&sandbox, "inspect", &mounted(&container, path)).await;
        assert_eq!((inspected.len(), &inspected[0]["id"]), (1, &listed["id"]));
    }
    let device = volumes.iter().find(|it| it["device_path"] == "/dev/xvda").unwrap();
    assert_eq!(device["mount_path"], Value::Null, "{device}");
    // One that cannot be mounted takes the other one back.
    let all = Snapshot::of(&sandbox, &[&container]).await;
    let (more, blank) = (ext4(), Volume::sparse(MIB));
    let plug = sandbox.mount_command(&container, &[(&more, "/more"), (&blank, "/blank")]);
    assert_ne!(plug.run().await.status, 0);
    all.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(shell(&container, "ls -d /more /blank 2>/dev/null || true").await, "");

    unmount(&sandbox, &container, "/data/first").await;
    assert_hello(&container, "/data/second").await;
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    unmount(&sandbox, &container, "/data/second").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(shell(&container, "ls -d /data || true").await, "");
}

/// A process of the container that waits for the directory's contents.
#[rstest]
#[tokio::test]
async fn process_that_was_started_before_sees_it_at_once(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let (waiter, volume) = (container.clone(), ext4());
    let script = "touch /tmp/waits; until cat /mnt/hello 2>/dev/null; do sleep 0.01; done";
    let waiter = tokio::spawn(async move { shell(&waiter, script).await });
    shell(&container, "until test -e /tmp/waits; do sleep 0.01; done").await;
    sandbox.mount(&container, &volume, "/mnt").await;
    let limit = Duration::from_secs(5);
    let read = sandbox.guest().wait_for("the process's end", limit, waiter).await.unwrap();
    assert_eq!(read.unwrap(), "from the host");
    unmount(&sandbox, &container, "/mnt").await;
}
