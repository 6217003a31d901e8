//! Device paths on every kind of mount that a container can have. Each one works, with a mknod node
//! or a bind node, or gives a specific error. Nothing is left in either case.

use rstest::rstest;
use vm_harness::{
    Container, ContainerOptions, DeviceFilter, Machine, Sandbox, Snapshot, Volume, mount,
};

use super::{
    MIB, at_fault_point, boot, ext4_image,
    hot_unplug::{at, unplug},
    mount_in_guest, sandbox, sandbox_with_faults,
};

/// Plugs a volume, reads it and unplugs it, and compares everything with the state before.
async fn works(sandbox: &Sandbox, containers: &[&Container], path: &str, node: &str) {
    let before = Snapshot::of(sandbox, containers).await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(containers[0], &volume, path).await;
    assert_eq!(plugged.text("node"), node, "{path}");
    assert_eq!(containers[0].read(path, 0..65536).await, volume.bytes(0..65536), "{path}");
    for sibling in &containers[1..] {
        let seen = sibling.try_exec(&["test", "-b", path], b"").await.unwrap();
        assert_ne!(seen.status, 0, "{path}: no other container has a node");
    }
    unplug(sandbox, &at(containers[0], path)).await;
    before.assert_unchanged(sandbox, containers).await;
}

async fn is_refused(
    sandbox: &Sandbox,
    containers: &[&Container],
    path: &str,
    status: i32,
    reason: &str,
) {
    let before = Snapshot::of(sandbox, containers).await;
    let volume = Volume::image(MIB);
    let plug = sandbox.hot_plug_command(containers[0], &[(&volume, path)]);
    // Everything except a lack of space is detected by the preflight, before QEMU is changed.
    let dry_run = (reason != "no_space").then(|| plug.clone().args(["--dry-run"]));
    for call in dry_run.into_iter().chain([plug]) {
        let (reported, message) = call.run().await.failed_with(status);
        assert_eq!(reported, reason, "{path}: {message}");
        assert!(message.contains(path), "{path}: {message}");
    }
    before.assert_unchanged(sandbox, containers).await;
}

#[rstest]
#[tokio::test]
async fn every_kind_of_mount_works_or_is_refused_with_a_reason() {
    let kernel_parameters = vec!["guest.modules=overlay".to_owned()];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let first = sandbox.start_container().await;
    let disk = ext4_image(16 * MIB);
    let plugged = sandbox.hot_plug(&first, &disk, "/dev/xvdz").await;
    mount_in_guest(&sandbox, &plugged).await;
    sandbox
        .observer()
        .shell(
            "mkdir -p /pod /shared /layers && mount -t tmpfs pod /pod && mount -t tmpfs shared /shared &&
             mount --make-shared /shared && mount -t tmpfs layers /layers && cd /layers && mkdir lower upper work",
        )
        .await;
    let layers = ["lowerdir=/layers/lower,upperdir=/layers/upper,workdir=/layers/work"];
    let options = ContainerOptions {
        // Without a filter every node would be a bind node.
        device_filter: DeviceFilter::Bpf,
        // Below /dev, which a snapshot covers.
        mounts: vec![
            mount("/dev/nodev", "tmpfs", "tmpfs", &["nodev"]),
            mount("/dev/overlay", "overlay", "overlay", &layers),
            mount("/dev/disk", "bind", "/mnt", &["rbind", "rprivate"]),
            mount("/dev/pod", "bind", "/pod", &["rbind", "rprivate"]),
            mount("/dev/shared", "bind", "/shared", &["rbind", "rprivate"]),
            mount("/dev/slave", "bind", "/shared", &["rbind", "rslave"]),
            mount("/dev/readonly", "tmpfs", "tmpfs", &["ro"]),
            mount("/dev/full", "tmpfs", "tmpfs", &["nr_inodes=1"]),
            mount("/dev/full-nodev", "tmpfs", "tmpfs", &["nr_inodes=1", "nodev"]),
            // Space for a directory, but not for a file in it.
            mount("/dev/fuller", "tmpfs", "tmpfs", &["nr_inodes=2"]),
            mount("/dev/fuller-nodev", "tmpfs", "tmpfs", &["nr_inodes=2", "nodev"]),
        ],
        capabilities: vec!["CAP_SYS_ADMIN".to_owned()],
        ..ContainerOptions::default()
    };
    let pod =
        ContainerOptions { mounts: options.mounts[2..6].to_vec(), ..ContainerOptions::default() };
    let container = sandbox.start_container_with(&options).await;
    let sibling = sandbox.start_container_with(&pod).await;
    // crun leaves no mount with shared propagation. The container makes one shared itself, and
    // makes a bind mount of it that would receive each new mount.
    let share =
        "mkdir /dev/copy && mount --make-shared /dev/shared && mount -o bind /dev/shared /dev/copy";
    container.exec(&["sh", "-c", share]).await;
    let both = [&container, &sibling];
    for (path, node) in [
        ("/dev/xvda", "mknod"),
        ("/dev/new/directory/xvda", "mknod"),
        ("/dev/nodev/xvda", "bind"),
        ("/dev/nodev/new/xvda", "bind"),
        ("/dev/overlay/xvda", "bind"),
        ("/dev/disk/xvda", "bind"),
        ("/dev/disk/new/directory/xvda", "bind"),
        ("/dev/pod/xvda", "bind"),
        ("/dev/slave/xvda", "bind"),
        // The root directory is on the guest's initramfs, which all containers share.
        ("/tmp/xvda", "bind"),
    ] {
        works(&sandbox, &both, path, node).await;
    }
    for (path, status, reason) in [
        ("/dev/shared/xvda", 10, "unsupported"),
        ("/dev/readonly/xvda", 9, "read_only_file_system"),
        ("/dev/full/xvda", 9, "no_space"),
        ("/dev/full/new/xvda", 9, "no_space"),
        ("/dev/full-nodev/xvda", 9, "no_space"),
        ("/dev/fuller/new/xvda", 9, "no_space"),
        ("/dev/fuller-nodev/new/xvda", 9, "no_space"),
        ("/dev/pts/xvda", 10, "unsupported"),
        ("/proc/xvda", 10, "unsupported"),
        ("/proc/self/xvda", 10, "unsupported"),
        ("/sys/xvda", 9, "read_only_file_system"),
    ] {
        is_refused(&sandbox, &both, path, status, reason).await;
    }
}

#[rstest]
#[tokio::test]
async fn read_only_root_takes_volumes_below_dev_only(#[future(awt)] sandbox: Sandbox) {
    for (device_filter, node) in [(DeviceFilter::Bpf, "mknod"), (DeviceFilter::None, "bind")] {
        let options =
            ContainerOptions { read_only_root: true, device_filter, ..ContainerOptions::default() };
        let container = sandbox.start_container_with(&options).await;
        is_refused(&sandbox, &[&container], "/mnt/xvda", 9, "read_only_file_system").await;
        works(&sandbox, &[&container], "/dev/xvda", node).await;
    }
}

#[rstest]
#[tokio::test]
async fn container_with_the_guests_dev_gets_a_mount_that_the_guest_does_not_see(
    #[future(awt)] sandbox: Sandbox,
) {
    let options = ContainerOptions {
        mounts: vec![mount("/dev", "bind", "/dev", &["rbind", "rprivate"])],
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    let before = sandbox.observer().shell("ls -A /dev").await;
    works(&sandbox, &[&container], "/dev/xvda", "bind").await;
    assert_eq!(sandbox.observer().shell("ls -A /dev").await, before);
}

#[rstest]
#[case::mknod(false, "mknod")]
#[case::bind(true, "bind")]
#[tokio::test]
async fn container_in_a_chroot_is_served(#[case] user_namespace: bool, #[case] node: &str) {
    let kernel_parameters = vec!["agent.no_pivot_root=on".to_owned()];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let options = ContainerOptions {
        user_namespace,
        device_filter: DeviceFilter::Bpf,
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    works(&sandbox, &[&container], "/dev/new/xvda", node).await;
    works(&sandbox, &[&container], "/tmp/xvda", "bind").await;
}

/// After the check, the container makes the mount of the device path shared. Then the kernel itself
/// refuses the bind node.
#[rstest]
#[tokio::test]
async fn mount_that_becomes_shared_after_the_check_gets_no_node(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    let options = ContainerOptions {
        mounts: vec![mount("/dev/nodev", "tmpfs", "tmpfs", &["nodev"])],
        capabilities: vec!["CAP_SYS_ADMIN".to_owned()],
        ..ContainerOptions::default()
    };
    let container = sandbox.start_container_with(&options).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::image(MIB);
    let plug = sandbox.hot_plug_command(&container, &[(&volume, "/dev/nodev/xvda")]);
    let share =
        "mount --make-shared /dev/nodev && mkdir /dev/copy && mount -o bind /dev/nodev /dev/copy";
    let finished = at_fault_point(&sandbox, &container, plug, "attach-after-filter", share).await;
    let (reason, message) = finished.failed_with(10);
    assert!(reason == "unsupported" && message.contains("shared propagation"), "{message}");
    let restore = "umount /dev/copy && rmdir /dev/copy && mount --make-private /dev/nodev && ls -A /dev/nodev";
    assert_eq!(container.exec(&["sh", "-c", restore]).await, b"", "nothing is left");
    before.assert_unchanged(&sandbox, &[&container]).await;
}
