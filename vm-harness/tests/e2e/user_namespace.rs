//! Containers with a user namespace, in which device nodes on the container's file systems cannot
//! be opened. They get a bind node.

use rstest::rstest;
use vm_harness::{ContainerOptions, DeviceFilter, Sandbox, Snapshot, Volume};

use super::{MIB, hot_unplug::unplug_command, sandbox, sandbox_with_faults, set_guest_faults};

fn with_user_namespace() -> ContainerOptions {
    ContainerOptions { user_namespace: true, ..ContainerOptions::default() }
}

/// Returns the state that `list` reports for the only volume, and what `repair` does about it.
async fn state_and_repair(sandbox: &Sandbox) -> (String, String) {
    let call = async |verb| {
        let arguments = ["block-volume", verb, "--output", "json", "--sandbox", sandbox.id()];
        sandbox.ecr_runtime().args(arguments).run().await.json()["volumes"][0].clone()
    };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    (text(&call("list").await["state"]), text(&call("repair").await["action"]))
}

#[rstest]
#[tokio::test]
async fn volume_is_a_mount_of_the_containers_root_and_is_removed_completely(
    #[future(awt)] sandbox: Sandbox,
    #[values(DeviceFilter::None, DeviceFilter::Bpf)] device_filter: DeviceFilter,
) {
    let container = sandbox
        .start_container_with(&ContainerOptions { device_filter, ..with_user_namespace() })
        .await;
    let sibling = sandbox
        .start_container_with(&ContainerOptions { device_filter, ..with_user_namespace() })
        .await;
    let both = [&container, &sibling];
    let before = Snapshot::of(&sandbox, &both).await;
    let volume = Volume::loop_device(4 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/disks/xvda").await;
    assert_eq!(plugged.text("node"), "bind");
    assert_eq!(container.read("/dev/disks/xvda", 0..4 * MIB).await, volume.bytes(0..4 * MIB));
    let fresh = vm_harness::random_bytes(65536);
    container.write("/dev/disks/xvda", MIB, &fresh).await;
    let stat =
        container.exec(&["stat", "-c", "%F %u:%g %a", "/dev/disks/xvda", "/dev/disks"]).await;
    assert_eq!(String::from_utf8(stat).unwrap(), "block special file 0:0 660\ndirectory 0:0 755\n");
    sibling.exec_fails(&["ls", "/dev/disks"]).await;
    // The container may not create a device node of its own, and could not open it either.
    let error = sibling.exec_fails(&["mknod", "/dev/own", "b", "8", "0"]).await;
    assert!(error.contains("not permitted"), "{error}");
    assert_eq!(sandbox.hot_plug(&container, &volume, "/dev/disks/xvda").await.result, "unchanged");
    assert_eq!(state_and_repair(&sandbox).await, ("attached".to_owned(), "kept".to_owned()));

    let finished = unplug_command(&sandbox, &container, "/dev/disks/xvda").run().await;
    assert_eq!(finished.status, 0, "{}", finished.stdout);
    before.assert_unchanged(&sandbox, &both).await;
    assert_eq!(volume.bytes(MIB..MIB + 65536), fresh, "what the container wrote is on the volume");
}

#[rstest]
#[tokio::test]
async fn holder_of_the_mounted_node_is_reported_and_keeps_it(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&with_user_namespace()).await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let opener = container.clone();
    let script = "exec 5</dev/xvda; touch /dev/open; until [ -e /dev/close ]; do sleep 0.1; done";
    let opener = tokio::spawn(async move { opener.exec(&["sh", "-c", script]).await });
    container
        .exec(&["sh", "-c", "until [ -e /dev/open ]; do sleep 0.05; done; rm /dev/open"])
        .await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let finished = unplug_command(&sandbox, &container, "/dev/xvda").run().await;
    finished.failed_with(5);
    let holders = finished.json()["error"]["holders"].clone();
    assert_eq!(
        (&holders[0]["kind"], &holders[0]["detail"]),
        (&"process".into(), &"/dev/xvda".into()),
        "{holders}"
    );
    before.assert_unchanged(&sandbox, &[&container]).await;
    container.exec(&["touch", "/dev/close"]).await;
    opener.await.unwrap();
    let finished = unplug_command(&sandbox, &container, "/dev/xvda").run().await;
    assert_eq!(finished.status, 0, "{}", finished.stdout);
    let left = container.exec(&["ls", "-A", "/dev"]).await;
    assert!(!String::from_utf8(left).unwrap().contains("xvda"));
}

#[rstest]
#[tokio::test]
async fn unmount_by_the_container_is_detected_and_the_node_is_restored(
    #[future(awt)] sandbox: Sandbox,
) {
    let options = ContainerOptions {
        capabilities: vec!["CAP_SYS_ADMIN".to_owned()],
        ..with_user_namespace()
    };
    let container = sandbox.start_container_with(&options).await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.exec(&["umount", "/dev/xvda"]).await;
    // The empty file blocks the path. It may belong to another process by now.
    assert_eq!(state_and_repair(&sandbox).await.0, "incomplete");
    container.exec(&["rm", "-f", "/dev/xvda"]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.exec(&["sh", "-c", "umount /dev/xvda; rm /dev/xvda"]).await;
    assert_eq!(state_and_repair(&sandbox).await, ("incomplete".to_owned(), "completed".to_owned()));
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

#[rstest]
#[tokio::test]
async fn owner_without_a_mapping_in_the_container_is_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&with_user_namespace()).await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let (_, message) = command.clone().args(["--uid", "65536"]).run().await.failed_with(10);
    assert!(message.contains("65536:0") && message.contains("mapped"), "{message}");
    before.assert_unchanged(&sandbox, &[&container]).await;
    command
        .args(["--uid", "1000", "--gid", "7", "--mode", "600"])
        .run()
        .await
        .succeeded(sandbox.guest());
    let stat = container.exec(&["stat", "-c", "%u:%g %a", "/dev/xvda"]).await;
    assert_eq!(String::from_utf8(stat).unwrap(), "1000:7 600\n");
}

#[rstest]
#[tokio::test]
async fn failure_at_any_step_leaves_neither_mount_nor_file(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container_with(&with_user_namespace()).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volumes = [Volume::image(MIB), Volume::image(MIB)];
    let pairs = [(&volumes[0], "/dev/new/xvda"), (&volumes[1], "/dev/new/xvdb")];
    for point in ["node", "filter", "publish"] {
        set_guest_faults(&sandbox, &format!("attach-after-{point}=error\n")).await;
        sandbox.hot_plug_command(&container, &pairs).run().await.failed_with(1);
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    set_guest_faults(&sandbox, "").await;
    sandbox.hot_plug_command(&container, &pairs).run().await.succeeded(sandbox.guest());
    // A detach that fails in the middle restores the mounts.
    let plugged = Snapshot::of(&sandbox, &[&container]).await;
    for point in ["unlink", "check"] {
        set_guest_faults(&sandbox, &format!("detach-after-{point}=error\n")).await;
        unplug_command(&sandbox, &container, "/dev/new/xvda").run().await.failed_with(1);
        let left = Snapshot::of(&sandbox, &[&container]).await;
        assert_eq!(left.container_mounts.len(), plugged.container_mounts.len(), "{point}");
        assert_eq!(container.read("/dev/new/xvda", 0..4096).await, volumes[0].bytes(0..4096));
    }
    set_guest_faults(&sandbox, "").await;
    for path in ["/dev/new/xvda", "/dev/new/xvdb"] {
        assert_eq!(unplug_command(&sandbox, &container, path).run().await.status, 0);
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
}
