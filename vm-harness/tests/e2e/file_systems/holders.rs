//! Holders of a mounted file system: each is named with what it does, waited for, and loses the
//! file system by `--force`.

use std::process::Command;

use rstest::rstest;
use vm_harness::{Container, ContainerOptions, FileSystem, Machine, Sandbox, Snapshot, Volume};

use super::{
    super::{
        boot,
        holders::assert_named_and_waited_for,
        host_failures::claim_is_free,
        hot_unplug::{query_volumes, verb},
    },
    HELLO, mounted, shell, unmount_command,
};

/// What holds the file system at `/mnt`.
struct Hold {
    /// Kind and detail, as the command names them.
    kind: &'static str,
    detail: &'static str,
    /// Run in the container.
    hold: &'static str,
    /// Run in the guest: PID is the holder, PROC the directory of the container's first process.
    release: &'static str,
    /// Run in the container after the file system was taken away.
    clean: &'static str,
}

/// A process that does nothing, in the background of a script.
macro_rules! idle {
    ($before:literal) => {
        concat!($before, " tail -f /dev/null </dev/null >/dev/null 2>&1 &")
    };
}

const PROCESSES: [Hold; 3] = [
    Hold {
        kind: "process",
        detail: "/mnt/hello",
        hold: idle!("exec 3</mnt/hello;"),
        release: "kill PID",
        clean: "busybox killall tail",
    },
    Hold {
        kind: "process",
        detail: "/mnt (working directory)",
        hold: idle!("cd /mnt;"),
        release: "kill PID",
        clean: "busybox killall tail",
    },
    Hold {
        kind: "process",
        detail: "/mnt/busybox (mapped)",
        hold: idle!("cp /bin/busybox /mnt/busybox && /mnt/busybox"),
        release: "kill PID",
        clean: "busybox killall busybox tail",
    },
];

const MOUNTS: [Hold; 3] = [
    Hold {
        kind: "mount",
        detail: "/mnt/sub",
        hold: "mkdir -p /mnt/sub && mount -t tmpfs nested /mnt/sub",
        release: "nsenter --mount=PROC/ns/mnt --root=PROC/root /bin/umount /mnt/sub",
        clean: "true",
    },
    Hold {
        kind: "mount",
        detail: "/tmp/copy",
        hold: "mkdir -p /tmp/copy; busybox unshare --mount --propagation private sh -c \
               'mount -o bind /mnt /tmp/copy && umount /mnt && exec tail -f /dev/null' </dev/null >/dev/null 2>&1 & \
               until busybox pidof tail; do sleep 0.01; done",
        release: "kill $(pidof tail)",
        clean: "busybox killall tail",
    },
    Hold {
        kind: "mount",
        detail: "overlay",
        hold: "mkdir -p /mnt/lower /mnt/other /tmp/over && \
               mount -t overlay -o lowerdir=/mnt/lower:/mnt/other over /tmp/over",
        release: "nsenter --mount=PROC/ns/mnt --root=PROC/root /bin/umount /tmp/over",
        clean: "umount /tmp/over",
    },
];

const DEVICES: [Hold; 2] = [
    Hold {
        kind: "loop",
        detail: "loop0",
        hold: "test -b /dev/loop0 || mknod /dev/loop0 b 7 0; dd if=/dev/zero of=/mnt/image bs=1M count=1 \
               2>/dev/null && busybox losetup /dev/loop0 /mnt/image",
        release: "losetup -d /dev/loop0",
        clean: "busybox losetup -d /dev/loop0",
    },
    Hold {
        kind: "swap",
        detail: "/mnt/swap",
        hold: "dd if=/dev/zero of=/mnt/swap bs=1M count=2 2>/dev/null && busybox mkswap /mnt/swap && \
               busybox swapon /mnt/swap",
        release: "swapoff PROC/root/mnt/swap",
        clean: "busybox swapoff /mnt/swap",
    },
];

/// Boots a guest with overlayfs and loop devices, and a container that may mount.
async fn sandbox_and_container() -> (Sandbox, Container) {
    let kernel_parameters = vec!["guest.modules=overlay,loop".to_owned()];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let capabilities = vec!["CAP_SYS_ADMIN".to_owned()];
    let options = ContainerOptions { capabilities, ..ContainerOptions::default() };
    let container = sandbox.start_container_with(&options).await;
    (sandbox, container)
}

/// Returns a script of the guest for this container.
fn in_guest(script: &str, container: &Container) -> String {
    let id = container.id();
    script.replace("PROC", &format!("/proc/$(head -n 1 /sys/fs/cgroup/pod/{id}/cgroup.procs)"))
}

#[rstest]
#[case::processes(&PROCESSES)]
#[case::mounts(&MOUNTS)]
#[case::devices(&DEVICES)]
#[tokio::test]
async fn holders_are_named_and_waited_for(#[case] holds: &[Hold]) {
    let (sandbox, container) = sandbox_and_container().await;
    for Hold { kind, detail, hold, release, .. } in holds {
        let volume = FileSystem::Ext4.volume(&[HELLO]);
        let plugged = sandbox.mount(&container, &volume, "/mnt").await;
        shell(&container, hold).await;
        let before = Snapshot::of(&sandbox, &[&container]).await;
        let refused = unmount_command(&sandbox, &container, "/mnt").run().await;
        let (reason, message) = refused.failed_with(5);
        assert!(reason == "busy" && message.contains(detail), "{detail}: {message}");
        before.assert_unchanged(&sandbox, &[&container]).await;
        let release = in_guest(release, &container);
        let holder = assert_named_and_waited_for(&sandbox, &plugged, kind, &release).await;
        let named = holder["detail"].as_str().unwrap();
        assert!(named.contains(detail), "{detail}: {holder}");
        assert!(claim_is_free(&volume), "{detail}");
        FileSystem::Ext4.assert_consistent(&volume);
    }
}

/// Whoever holds it, the host has its volume again, and what was written before is on it.
#[rstest]
#[case::processes(&PROCESSES)]
#[case::mounts(&MOUNTS)]
#[case::devices(&DEVICES)]
#[tokio::test]
async fn force_takes_it_from_every_kind_of_holder(#[case] holds: &[Hold]) {
    let (sandbox, container) = sandbox_and_container().await;
    for Hold { detail, hold, clean, .. } in holds {
        let volume = FileSystem::Ext4.volume(&[HELLO]);
        sandbox.mount(&container, &volume, "/mnt").await;
        shell(&container, hold).await;
        shell(&container, "echo written > /mnt/file").await;
        let more = [&mounted(&container, "/mnt")[..], &["--force"]].concat();
        let forced = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &more).run().await;
        assert_eq!(forced.succeeded(sandbox.guest())[0].result, "detached");
        let broken = forced.json()["broken_holders"].to_string();
        assert!(broken.contains(detail), "{detail}: {}", forced.stdout);
        assert!(claim_is_free(&volume), "{detail}");
        assert_eq!(shell(&container, "ls -A /mnt").await, "", "{detail}");
        // What was in the journal is replayed.
        let repaired = Command::new("e2fsck").args(["-fy", volume.name()]).output().unwrap();
        assert!(repaired.status.code().unwrap() < 4, "{detail}: {repaired:?}");
        assert_eq!(FileSystem::Ext4.read(&volume, "file"), b"written\n", "{detail}");
        container.try_exec(&["sh", "-c", clean], b"").await.unwrap();
        // A later request notices that nothing refers to the disk any more.
        assert_eq!(query_volumes(&sandbox, "list", &[]).await, [serde_json::Value::Null; 0]);
        assert_usable(&sandbox, &container).await;
    }
}

/// The path and the container take the next volume.
async fn assert_usable(sandbox: &Sandbox, container: &Container) {
    let next: Volume = super::ext4();
    sandbox.mount(container, &next, "/mnt").await;
    super::assert_hello(container, "/mnt").await;
    super::unmount(sandbox, container, "/mnt").await;
}
