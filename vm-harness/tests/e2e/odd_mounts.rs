//! Paths on every kind of mount that a container can have: each works, by a node or by a mount, or
//! has an error of its own, and nothing is left either way.

use rstest::rstest;
use vm_harness::{Container, ContainerOptions, Machine, Sandbox, Snapshot, Volume, mount};

use super::{
    MIB, at_fail_point, boot, ext4_image,
    hot_unplug::{at, unplug},
    mount_in_guest, sandbox, sandbox_with_faults,
};

/// Plugs, reads, unplugs, and compares everything with what was there before.
async fn works(sandbox: &Sandbox, containers: &[&Container], path: &str, way: &str) {
    let before = Snapshot::of(sandbox, containers).await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(containers[0], &volume, path).await;
    assert_eq!(plugged.text("node"), way, "{path}");
    assert_eq!(containers[0].read(path, 0..65536).await, volume.bytes(0..65536), "{path}");
    for sibling in &containers[1..] {
        let seen = sibling.try_exec(&["test", "-b", path], b"").await.unwrap();
        assert_ne!(seen.status, 0, "{path}: nobody else has a node");
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
    // All but a lack of space is known by a look, before QEMU has anything.
    let look = (reason != "no_space").then(|| plug.clone().args(["--dry-run"]));
    for call in look.into_iter().chain([plug]) {
        let told = call.run().await.failed_with(status);
        assert_eq!(told.0, reason, "{path}: {}", told.1);
        assert!(told.1.contains(path), "{path}: {}", told.1);
    }
    before.assert_unchanged(sandbox, containers).await;
}

#[rstest]
#[tokio::test]
async fn every_kind_of_mount_works_or_says_why_not() {
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
        // Below /dev, where a snapshot looks.
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
            // Room for a directory, and not for what comes into it.
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
    // crun leaves no mount that spreads: the container makes one itself, and a copy that would get
    // what is mounted there.
    let spread =
        "mkdir /dev/copy && mount --make-shared /dev/shared && mount -o bind /dev/shared /dev/copy";
    container.exec(&["sh", "-c", spread]).await;
    let both = [&container, &sibling];
    for (path, way) in [
        ("/dev/xvda", "mknod"),
        ("/dev/new/directory/xvda", "mknod"),
        ("/dev/nodev/xvda", "bind"),
        ("/dev/nodev/new/xvda", "bind"),
        ("/dev/overlay/xvda", "bind"),
        ("/dev/disk/xvda", "bind"),
        ("/dev/disk/new/directory/xvda", "bind"),
        ("/dev/pod/xvda", "bind"),
        ("/dev/slave/xvda", "bind"),
        // The root is the guest's initramfs, which all containers have.
        ("/tmp/xvda", "bind"),
    ] {
        works(&sandbox, &both, path, way).await;
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
async fn read_only_root_takes_volumes_below_dev_alone(#[future(awt)] sandbox: Sandbox) {
    let options = ContainerOptions { read_only_root: true, ..ContainerOptions::default() };
    let container = sandbox.start_container_with(&options).await;
    is_refused(&sandbox, &[&container], "/mnt/xvda", 9, "read_only_file_system").await;
    works(&sandbox, &[&container], "/dev/xvda", "mknod").await;
}

#[rstest]
#[tokio::test]
async fn container_that_has_the_guests_dev_gets_a_mount_and_the_guest_nothing(
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
async fn container_in_a_chroot_is_served(#[case] user_namespace: bool, #[case] way: &str) {
    let kernel_parameters = vec!["agent.no_pivot_root=on".to_owned()];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let options = ContainerOptions { user_namespace, ..ContainerOptions::default() };
    let container = sandbox.start_container_with(&options).await;
    works(&sandbox, &[&container], "/dev/new/xvda", way).await;
    works(&sandbox, &[&container], "/tmp/xvda", "bind").await;
}

/// Behind the look, the container makes a mount that spreads of the one that the volume's node goes
/// to: the kernel itself refuses it then.
#[rstest]
#[tokio::test]
async fn mount_that_begins_to_spread_behind_the_look_gets_no_node(
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
    let spread =
        "mount --make-shared /dev/nodev && mkdir /dev/copy && mount -o bind /dev/nodev /dev/copy";
    let finished = at_fail_point(&sandbox, &container, plug, "attach-after-filter", spread).await;
    let (reason, message) = finished.failed_with(10);
    assert!(reason == "unsupported" && message.contains("shared propagation"), "{message}");
    let back = "umount /dev/copy && rmdir /dev/copy && mount --make-private /dev/nodev && ls -A /dev/nodev";
    assert_eq!(container.exec(&["sh", "-c", back]).await, b"", "nothing is left");
    before.assert_unchanged(&sandbox, &[&container]).await;
}
