//! Guests with systemd as PID 1 and udev, as Kata's images may have: udev opens every disk that
//! appears or changes, and runs what its rules say.

use std::time::{Duration, Instant};

use rstest::rstest;
use vm_harness::{Environment, Machine, Plugged, Sandbox, Snapshot, Volume, random_bytes};

use crate::{
    MIB,
    holders::{ends_soon, start_and_wait},
    hot_unplug::{at, query_volumes, unplug, verb},
};

const PATH: &str = "/dev/xvda";

async fn boot() -> Sandbox {
    let mut environment = Environment::from_variables();
    let systemd = environment.systemd().unwrap_or_else(|error| panic!("{}", error.chain()));
    environment.overrides.extra.extend(systemd);
    let sandbox = Sandbox::boot_in(&environment, "default", &Machine::default()).await;
    let sandbox = sandbox.unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()));
    let first = sandbox.observer().shell("cat /proc/1/comm; /bin/udevadm settle").await;
    assert_eq!(first, "systemd\n");
    sandbox
}

/// Gives udev a rule for disks that are added or changed.
async fn add_rule(sandbox: &Sandbox, assignment: &str) {
    let rule = format!(
        "ACTION!=\"remove\", SUBSYSTEM==\"block\", KERNEL==\"sd*\", ENV{{DEVTYPE}}==\"disk\", \
         {assignment}"
    );
    let script = format!(
        "mkdir -p /run/udev/rules.d && echo '{rule}' >>/run/udev/rules.d/90-test.rules && \
         /bin/udevadm control --reload"
    );
    sandbox.observer().shell(&script).await;
}

/// Waits until a process outside of containers has the volume open.
async fn is_held(sandbox: &Sandbox, plugged: &Plugged) {
    let is_open = async || {
        let volumes = query_volumes(sandbox, "inspect", &["--volume", plugged.id()]).await;
        let holders = volumes[0]["guest"]["holders"].as_array().cloned().unwrap_or_default();
        holders.iter().any(|holder| holder["kind"] == "process")
    };
    let deadline = Instant::now() + sandbox.guest().scaled(Duration::from_secs(10));
    while !is_open().await {
        assert!(Instant::now() < deadline, "udev never opened the disk");
    }
}

/// Ends the programs that wait for it, and waits until udev has handled every event.
async fn release(sandbox: &Sandbox) {
    let script = "touch /run/release; /bin/udevadm settle; rm /run/release";
    sandbox.observer().shell(script).await;
}

/// Waits until udev has handled every event.
async fn settle(sandbox: &Sandbox) {
    sandbox.observer().shell("/bin/udevadm settle").await;
}

/// The mounts of the guest itself, and how many of them are shared.
async fn mounts(sandbox: &Sandbox) -> (String, usize) {
    let mounts = sandbox.observer().shell("cat /proc/1/mountinfo").await;
    let shared = mounts.matches(" shared:").count();
    (mounts, shared)
}

#[tokio::test]
async fn volumes_come_and_go_while_udev_probes_them() {
    let sandbox = boot().await;
    // One gets a mount, the other one a node.
    let bind = sandbox.start_container().await;
    let mknod = sandbox.start_container_with(&crate::guarded()).await;
    settle(&sandbox).await;
    let before = Snapshot::of(&sandbox, &[&bind, &mknod]).await;
    let mounts_before = mounts(&sandbox).await;
    assert!(mounts_before.1 > 0, "systemd makes mounts shared: {}", mounts_before.0);
    let volume = crate::ext4_image(4 * MIB);
    let (mut plugs, mut unplugs) = (Vec::new(), Vec::new());
    for round in 0..30 {
        let container = [&bind, &mknod][round % 2];
        let began = Instant::now();
        let plugged = sandbox.hot_plug(container, &volume, PATH).await;
        plugs.push(began.elapsed());
        assert_eq!(plugged.text("node"), ["bind", "mknod"][round % 2], "{round}");
        if round % 3 > 0 {
            // The last close of the container's writes comes right before the unplug.
            let fresh = random_bytes(4096);
            container.write(PATH, MIB, &fresh).await;
            assert_eq!(container.read(PATH, MIB..MIB + 4096).await, fresh, "{round}");
        }
        if round % 3 > 1 {
            settle(&sandbox).await;
            assert_eq!(mounts(&sandbox).await, mounts_before, "{round}");
        }
        let began = Instant::now();
        assert_eq!(unplug(&sandbox, &at(container, PATH)).await.result, "detached", "{round}");
        unplugs.push(began.elapsed());
    }
    plugs.sort();
    unplugs.sort();
    println!("plug {:?} (median), {:?} (longest)", plugs[15], plugs[29]);
    println!("unplug {:?} (median), {:?} (longest)", unplugs[15], unplugs[29]);
    settle(&sandbox).await;
    before.assert_unchanged(&sandbox, &[&bind, &mknod]).await;
}

/// Programs that udev runs for a disk, and that end when `/run/release` exists. udev itself has the
/// disk open meanwhile, and locked.
#[rstest]
#[case::after_the_rules("RUN+=\"/bin/sh /run/hold\"")]
#[case::within_the_rules("PROGRAM=\"/bin/sh /run/hold\"")]
#[case::of_a_disk_that_is_watched("OPTIONS+=\"watch\", RUN+=\"/bin/sh /run/hold\"")]
#[case::that_claims_and_locks_it("RUN+=\"/usr/bin/observer claim /dev/%k /run/release\"")]
#[tokio::test]
async fn a_program_that_udev_runs_delays_an_unplug_and_does_not_refuse_it(#[case] rule: &str) {
    let sandbox = boot().await;
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let hold = "until [ -e /run/release ]; do /bin/busybox usleep 20000; done\n";
    sandbox.observer().write("/run/hold", hold).await.unwrap();
    add_rule(&sandbox, rule).await;
    let volume = Volume::image(4 * MIB);
    for resize in [false, true] {
        let plugged = sandbox.hot_plug(&container, &volume, PATH).await;
        if resize {
            release(&sandbox).await;
            let size = (volume.size() + MIB).to_string();
            let more = [&at(&container, PATH)[..], &["--size", &size]].concat();
            let resized = verb(sandbox.ecr_runtime(), &sandbox, "resize", &more).run().await;
            assert_eq!(resized.succeeded(sandbox.guest())[0].result, "resized");
        }
        is_held(&sandbox, &plugged).await;
        let call = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, PATH));
        let began = Instant::now();
        let unplug = start_and_wait(&sandbox, &call).await;
        release(&sandbox).await;
        let unplugged = ends_soon(&sandbox, unplug).await.succeeded(sandbox.guest());
        println!("unplugged after {:?}", began.elapsed());
        assert_eq!(unplugged[0].result, "detached", "{rule}");
    }
    settle(&sandbox).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[tokio::test]
async fn a_program_of_the_guest_that_keeps_a_disk_open_is_named_and_udev_probes_nothing_again() {
    let sandbox = boot().await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(4 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, PATH).await;
    let observer = sandbox.observer();
    let device = plugged.guest_device();
    let hold = format!("exec 3</dev/{device}; sleep 1000 </dev/null >/dev/null 2>&1 & echo $!");
    let pid = observer.shell(&hold).await.trim().to_owned();
    settle(&sandbox).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    const EVENTS: &str = "/bin/udevadm settle; cat /sys/kernel/uevent_seqnum";
    let events = observer.shell(EVENTS).await;
    container.write(PATH, 0, &random_bytes(4096)).await;
    assert_eq!(observer.shell(EVENTS).await, events, "udev watches the container's node");
    let began = Instant::now();
    let call = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, PATH));
    let finished = call.run().await;
    println!("refused after {:?}", began.elapsed());
    let (reason, message) = finished.failed_with(5);
    assert_eq!(reason, "busy");
    assert!(message.contains(&format!("process {pid} (")), "{message}");
    assert!(began.elapsed() < sandbox.guest().scaled(Duration::from_secs(10)));
    assert_eq!(observer.shell(EVENTS).await, events, "our claim made udev probe the disk again");
    before.assert_unchanged(&sandbox, &[&container]).await;
    observer.shell(&format!("kill {pid}")).await;
    assert_eq!(unplug(&sandbox, &at(&container, PATH)).await.result, "detached");
}

#[tokio::test]
async fn synthetic_events_neither_announce_a_disk_nor_delay_it() {
    let sandbox = boot().await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(4 * MIB);
    let script = "while [ ! -e /run/enough ]; do /bin/udevadm trigger --action=add \
                  --subsystem-match=block --subsystem-match=scsi; done </dev/null >/dev/null 2>&1 &";
    sandbox.observer().shell(script).await;
    for round in 0..5 {
        let plugged = sandbox.hot_plug(&container, &volume, PATH).await;
        assert_eq!(container.read(PATH, 0..4096).await, volume.bytes(0..4096), "{round}");
        assert_eq!(plugged.result, "attached", "{round}");
        assert_eq!(unplug(&sandbox, &at(&container, PATH)).await.result, "detached", "{round}");
    }
    sandbox.observer().shell("touch /run/enough").await;
}

#[tokio::test]
async fn a_disk_whose_node_a_rule_moves_away_is_attached_and_detached() {
    let sandbox = boot().await;
    let container = sandbox.start_container().await;
    add_rule(&sandbox, "RUN+=\"/bin/busybox mv /dev/%k /dev/moved\", SYMLINK+=\"disk/ours\"").await;
    let volume = Volume::image(4 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, PATH).await;
    settle(&sandbox).await;
    let device = plugged.guest_device();
    sandbox.observer().shell(&format!("test ! -e /dev/{device} && test -b /dev/moved")).await;
    let fresh = random_bytes(4096);
    container.write(PATH, 0, &fresh).await;
    assert_eq!(unplug(&sandbox, &at(&container, PATH)).await.result, "detached");
    assert_eq!(volume.bytes(0..4096), fresh);
}
