//! `resize` on real VMs: a file system in use grows, the guest learns the new size with and without
//! events from the controller, and a failed resize leaves the volume unchanged.

use std::process::Command;

use block_volume_api::block_volume::{Attachment, Reason, ResizeRequest, ResizeResponse};
use rstest::rstest;
use serde_json::{Value, json};
use vm_harness::{
    Container, ContainerOptions, Finished, Machine, Plugged, QmpProxy, Sandbox, Snapshot, Volume,
    random_bytes,
};

use super::{
    MIB, boot, boot_with_faults,
    hot_unplug::{at, query_volumes, unplug, verb},
    make_ext4, sandbox, set_guest_faults, wait_for_console,
};

const SIZE: u64 = 16 * MIB;
const GROWN: u64 = 48 * MIB;

/// A machine whose controller does or does not send the guest's kernel an event for a new size.
fn controller(events: bool) -> Machine {
    let device =
        if events { "virtio-scsi-pci,id=scsi0" } else { "virtio-scsi-pci,id=scsi0,hotplug=off" };
    Machine { controller: ["-device", device].map(str::to_owned).to_vec(), ..Machine::default() }
}

async fn resize(sandbox: &Sandbox, container: &Container, more: &[&str]) -> Finished {
    let more = [&at(container, "/dev/xvda")[..], more].concat();
    verb(sandbox.ecr_runtime(), sandbox, "resize", &more).run().await
}

async fn resized(sandbox: &Sandbox, container: &Container, more: &[&str]) -> Plugged {
    resize(sandbox, container, more).await.succeeded(sandbox.guest()).remove(0)
}

async fn shell(container: &Container, script: &str) -> String {
    String::from_utf8(container.exec(&["sh", "-c", script]).await).unwrap()
}

/// The size of the volume as the container sees it.
async fn size_in(container: &Container) -> u64 {
    shell(container, "blockdev --getsize64 /dev/xvda").await.trim().parse().unwrap()
}

#[rstest]
#[case::image_with_events(false, true)]
#[case::image_without_events(false, false)]
#[case::block_device_with_events(true, true)]
#[case::block_device_without_events(true, false)]
#[tokio::test]
async fn mounted_file_system_grows_in_the_container(#[case] device: bool, #[case] events: bool) {
    let sandbox = boot(&controller(events)).await;
    let mut privileged = ContainerOptions::privileged();
    // ext4 requires this capability to grow the file system.
    privileged.capabilities.push("CAP_SYS_RESOURCE".to_owned());
    let container = sandbox.start_container_with(&privileged).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = if device { Volume::loop_device(SIZE) } else { Volume::image(SIZE) };
    make_ext4(&volume);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    shell(&container, "mount -t ext4 /dev/xvda /mnt").await;
    let old = random_bytes(MIB as usize);
    container.write("/mnt/old", 0, &old).await;
    let blocks = || shell(&container, "df -k /mnt | awk 'END { print $2 }'");
    let few: u64 = blocks().await.trim().parse().unwrap();

    let grown = if device {
        volume.resize(GROWN);
        resized(&sandbox, &container, &[]).await
    } else {
        resized(&sandbox, &container, &["--size", "48MiB"]).await
    };
    assert_eq!((grown.result.as_str(), grown.id()), ("resized", plugged.id()));
    assert_eq!(grown.volume["size"], GROWN);
    assert_eq!(volume.size(), GROWN);
    assert_eq!(size_in(&container).await, GROWN);
    shell(&container, "/usr/sbin/resize2fs /dev/xvda 2>&1").await;
    let many: u64 = blocks().await.trim().parse().unwrap();
    assert!(many > 2 * few, "{few} KiB became {many}");
    // More data than the old size had room for, so that some of it is beyond the old end.
    let new = random_bytes(24 * MIB as usize);
    container.write("/mnt/new", 0, &new).await;
    assert!(container.read("/mnt/new", 0..24 * MIB).await == new);
    assert_eq!(container.read("/mnt/old", 0..MIB).await, old);

    // All commands report the new size, and the volume keeps its identity.
    let listed = query_volumes(&sandbox, "list", &[]).await;
    assert_eq!((&listed[0]["size"], &listed[0]["guest"]["size"]), (&json!(GROWN), &json!(GROWN)));
    assert_eq!(listed[0]["state"], "attached");
    let inspected = query_volumes(&sandbox, "inspect", &["--volume", plugged.id()]).await;
    assert_eq!(inspected[0]["guest"]["size"], GROWN);
    assert_eq!(inspected[0]["guest"]["holders"][0]["kind"], "mount");
    let again = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!((again.result.as_str(), &again.volume["size"]), ("unchanged", &json!(GROWN)));
    assert_eq!(resized(&sandbox, &container, &[]).await.result, "unchanged");

    shell(&container, "umount /mnt").await;
    assert_eq!(unplug(&sandbox, &at(&container, "/dev/xvda")).await.result, "detached");
    before.assert_unchanged(&sandbox, &[&container]).await;
    let checked = Command::new("e2fsck").args(["-f", "-n", volume.name()]).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[rstest]
#[tokio::test]
async fn invalid_sizes_change_nothing(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let (volume, image) = (Volume::loop_device(2 * MIB), Volume::image(2 * MIB));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let by_id = sandbox.hot_plug(&container, &image, "/dev/xvdb").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let checksum = image.checksum();
    let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
    let socket = proxy.path();
    let of_image = ["--volume", by_id.id()];
    let of_device = at(&container, "/dev/xvda");
    for (which, size, reason, status) in [
        (&of_image[..], &["--size", "0"][..], "usage", 2),
        (&of_image, &["--size", "1000"], "usage", 2),
        (&of_image, &["--size", "-4MiB"], "usage", 2),
        (&of_image, &["--size", "16EiB"], "usage", 2),
        (&of_image, &["--size", "1MiB"], "would_shrink", 4),
        (&of_device, &["--size", "4MiB"], "device_size", 4),
        (&of_device, &["--size", "1MiB"], "would_shrink", 4),
        (&of_device, &["--size", "1MiB", "--allow-shrink"], "device_size", 4),
    ] {
        let more = [which, size, &["--qmp", socket.to_str().unwrap()]].concat();
        let finished = verb(sandbox.ecr_runtime(), &sandbox, "resize", &more).run().await;
        let (reported, message) = finished.failed_with(status);
        assert_eq!(reported, reason, "{size:?}: {message}");
    }
    let is_query = |name: &String| {
        name.contains("query-")
            || ["qmp_capabilities", "qom-list", "qom-get"].contains(&name.as_str())
    };
    let commands = proxy.commands();
    assert!(commands.len() > 8 && commands.iter().all(is_query), "{commands:?}");
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!((image.checksum(), image.size()), (checksum, 2 * MIB));
    assert_eq!(size_in(&container).await, 2 * MIB);
}

#[rstest]
#[tokio::test]
async fn image_is_shrunk_if_that_is_allowed(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(4 * MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let kept = volume.bytes(0..2 * MIB);
    let shrunk = resized(&sandbox, &container, &["--size", "2MiB", "--allow-shrink"]).await;
    assert_eq!((shrunk.result.as_str(), &shrunk.volume["size"]), ("resized", &json!(2 * MIB)));
    assert_eq!((volume.size(), size_in(&container).await), (2 * MIB, 2 * MIB));
    assert_eq!(container.read("/dev/xvda", 0..2 * MIB).await, kept);
}

#[rstest]
#[tokio::test]
async fn volume_with_a_mounted_file_system_is_not_shrunk(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&ContainerOptions::privileged()).await;
    let volume = Volume::image(SIZE);
    make_ext4(&volume);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    shell(&container, "mount -t ext4 /dev/xvda /mnt").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let shrink = ["--size", "8MiB", "--allow-shrink"];
    for more in [&[][..], &["--dry-run"]] {
        let finished = resize(&sandbox, &container, &[&shrink[..], more].concat()).await;
        let (reason, message) = finished.failed_with(5);
        assert_eq!(reason, "busy");
        assert!(message.contains("mount /mnt"), "{message}");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!((volume.size(), size_in(&container).await), (SIZE, SIZE));
    shell(&container, "umount /mnt").await;
    assert_eq!(resized(&sandbox, &container, &shrink).await.volume["size"], 8 * MIB);
}

#[rstest]
#[tokio::test]
async fn guest_that_keeps_the_old_size_leaves_the_volume_unchanged() {
    let sandbox = boot_with_faults(&controller(false)).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(2 * MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let checksum = volume.checksum();
    set_guest_faults(&sandbox, "rescan=skip\n").await;
    let finished = resize(&sandbox, &container, &["--size", "4MiB", "--timeout", "12s"]).await;
    let (reason, message) = finished.failed_with(7);
    assert_eq!(reason, "timed_out");
    assert!(message.contains("to have 4194304 bytes, it has 2097152"), "{message}");
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!((volume.checksum(), volume.size()), (checksum, 2 * MIB));
    assert_eq!(query_volumes(&sandbox, "list", &[]).await[0]["size"], 2 * MIB);

    set_guest_faults(&sandbox, "").await;
    assert_eq!(resized(&sandbox, &container, &["--size", "4MiB"]).await.result, "resized");
    assert_eq!(size_in(&container).await, 4 * MIB);
}

#[rstest]
#[tokio::test]
async fn killed_resize_is_completed_by_the_next_resize() {
    let sandbox = boot(&controller(false)).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    for (point, size, result) in
        [("after-block-resize", 2 * MIB, "resized"), ("after-guest-resize", 3 * MIB, "unchanged")]
    {
        let size_text = size.to_string();
        let more = [&at(&container, "/dev/xvda")[..], &["--size", &size_text]].concat();
        let command = sandbox.ecr_runtime_with_faults(&format!("{point}=kill"));
        let killed = verb(command, &sandbox, "resize", &more).run().await;
        assert_eq!((killed.status, volume.size()), (128 + 9, size), "{point}");
        let completed = resized(&sandbox, &container, &more[4..]).await;
        assert_eq!(completed.result, result, "{point}");
        assert_eq!(size_in(&container).await, size, "{point}");
    }
}

/// Sends a resize request directly to the plugin. QEMU has not resized the volume yet.
async fn request_resize(
    sandbox: &Sandbox,
    plugged: &Plugged,
    size: u64,
    timeout_ms: u64,
) -> ResizeResponse {
    let attachment = Attachment { size, ..plugged.attachment() };
    let request = ResizeRequest { attachments: vec![attachment], timeout_ms, ..Default::default() };
    let service = sandbox.block_volume_service().await.unwrap();
    service.resize(sandbox.agent().context(), &request).await.unwrap()
}

fn reason(reply: &ResizeResponse) -> Reason {
    reply.failure.as_ref().map(|failure| failure.reason.enum_value_or_default()).unwrap_or_default()
}

#[rstest]
#[tokio::test]
async fn guest_waits_for_the_event_of_a_new_size() {
    let sandbox = boot_with_faults(&controller(true)).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    set_guest_faults(&sandbox, "resize-after-rescan=wait\n").await;
    let grow = async {
        wait_for_console(&sandbox, "fault point resize-after-rescan=wait").await;
        let mut monitor = sandbox.monitor().await.unwrap();
        let node = format!("ecrblk-{}-n", plugged.id());
        monitor.execute("block_resize", json!({"node-name": node, "size": 2 * MIB})).await.unwrap();
        set_guest_faults(&sandbox, "").await;
    };
    let (reply, ()) = tokio::join!(request_resize(&sandbox, &plugged, 2 * MIB, 60_000), grow);
    assert!(reply.failure.is_none(), "{:?}", reply.failure);
    assert_eq!((reply.resized[0].size, reply.resized[0].unchanged), (2 * MIB, false));
    let again = request_resize(&sandbox, &plugged, 2 * MIB, 60_000).await;
    assert!(again.resized[0].unchanged);

    let late = request_resize(&sandbox, &plugged, 3 * MIB, 500).await;
    assert_eq!(reason(&late), Reason::REASON_TIMED_OUT);
    assert!(
        late.failure.undone && late.failure.message.contains("it has 2097152"),
        "{:?}",
        late.failure
    );
    let mut other = plugged.clone();
    other.volume["id"] = Value::from("0123456789abcdef");
    let wrong = request_resize(&sandbox, &other, 2 * MIB, 60_000).await;
    assert_eq!(reason(&wrong), Reason::REASON_IDENTITY_MISMATCH);
    assert!(wrong.failure.message.contains(plugged.id()), "{:?}", wrong.failure);
}
