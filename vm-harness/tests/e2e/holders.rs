//! Holders of a volume in the guest: they are named, waited for, detected when they appear during a
//! detach, and broken by `--force`.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::{
    AttachRequest, Attachment, DetachRequest, Detachment, Reason,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;
use serde_json::Value;
use tokio::process::Child;
use vm_harness::{
    Cgroup, Container, ContainerOptions, EcrRuntime, Finished, Machine, Plugged, Sandbox, Snapshot,
    Volume,
};

use super::{
    MIB, boot, boot_with_faults, ext4_image,
    host_failures::claim_is_free,
    hot_unplug::{at, query_volumes, rules, unplug, verb},
    sandbox, set_guest_faults, wait_for_console, wait_for_fault_point,
};

/// How late an event may arrive after its cause, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// Boots a machine with everything that can be built on a disk: device mapper, md, loop devices.
async fn boot_with_tools() -> Sandbox {
    let modules = "guest.modules=dm_mod,raid1,loop".to_owned();
    boot(&Machine { kernel_parameters: vec![modules], ..Machine::default() }).await
}

/// Starts a process in `container` that has `path` open and does nothing.
async fn open_in(container: &Container, path: &str) {
    let script = format!("exec 3<{path}; tail -f /dev/null </dev/null >/dev/null 2>&1 &");
    container.exec(&["sh", "-c", &script]).await;
}

/// A script that kills all processes that [`open_in`] started, and waits until they have no
/// descriptors any more (in a container they are not reaped).
const CLOSE: &str = "for pid in $(pidof tail); do kill $pid; while readlink /proc/$pid/fd/0 >/dev/null; do usleep 10000; done; done";

/// Returns the holders that `hot-unplug` reports.
async fn holders(sandbox: &Sandbox, plugged: &Plugged) -> Vec<Value> {
    let finished =
        verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &["--volume", plugged.id()]).run().await;
    let (reason, message) = finished.failed_with(5);
    assert_eq!(reason, "busy", "{message}");
    let holders = finished.json()["error"]["holders"].as_array().cloned().unwrap_or_default();
    assert!(
        !holders.is_empty() && message.contains(holders[0]["detail"].as_str().unwrap()),
        "{message}"
    );
    holders
}

/// How often the guest has reported that it waits for the holders of a volume.
fn waits(sandbox: &Sandbox) -> usize {
    sandbox.guest().console().text().matches("waiting for the holders of volume").count()
}

/// Waits until the guest reports it once more than `before`.
async fn waits_again(sandbox: &Sandbox, before: usize) {
    let deadline = Instant::now() + sandbox.guest().scaled(SOON);
    while waits(sandbox) == before {
        assert!(Instant::now() < deadline, "the guest does not wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Starts a command, and returns when the guest reports that it waits for the holders of the
/// volume.
pub(crate) async fn start_and_wait(sandbox: &Sandbox, command: &EcrRuntime) -> Child {
    let before = waits(sandbox);
    let child = command.start();
    waits_again(sandbox, before).await;
    child
}

/// Waits for the end of a command that has nothing to wait for any more.
pub(crate) async fn ends_soon(sandbox: &Sandbox, command: Child) -> Finished {
    let began = Instant::now();
    let ended =
        sandbox.guest().wait_for("the command's end", SOON, command.wait_with_output()).await;
    let output = ended.unwrap_or_else(|error| panic!("{}", error.chain())).unwrap();
    Finished::new(&output, began.elapsed())
}

/// Checks that the unplug of a volume is refused while it is held, that `inspect` shows the holder,
/// and that an unplug that waits ends as soon as `release` has run. Returns the holder.
pub(crate) async fn assert_named_and_waited_for(
    sandbox: &Sandbox,
    plugged: &Plugged,
    kind: &str,
    release: &str,
) -> Value {
    let found = holders(sandbox, plugged).await;
    assert_eq!((found.len(), &found[0]["kind"]), (1, &Value::from(kind)), "{found:?}");
    let id = plugged.id();
    let inspected = query_volumes(sandbox, "inspect", &["--volume", id]).await;
    assert_eq!(inspected[0]["state"], "attached");
    // A claim can only be detected by another claim, and `inspect` changes nothing.
    let seen = if kind == "unknown" { Vec::new() } else { found.clone() };
    assert_eq!(inspected[0]["guest"]["holders"], Value::from(seen), "{kind}");

    let waiting =
        verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &["--volume", id, "--wait", "100s"]);
    let mut waiting = start_and_wait(sandbox, &waiting).await;
    assert!(waiting.try_wait().unwrap().is_none(), "{kind}: the command must wait");
    let pid = found[0]["pid"].as_u64().unwrap_or_default().to_string();
    sandbox.observer().shell(&release.replace("PID", &pid)).await;
    // An event ends the wait.
    let finished = ends_soon(sandbox, waiting).await;
    eprintln!("{kind}: {:?} from the release to the end", finished.elapsed);
    assert_eq!(finished.succeeded(sandbox.guest())[0].result, "detached", "{kind}");
    found[0].clone()
}

#[rstest]
#[tokio::test]
async fn processes_are_named_and_waited_for(#[future(awt)] sandbox: Sandbox) {
    let (container, sibling) = (sandbox.start_container().await, sandbox.start_container().await);
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    open_in(&container, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    holders(&sandbox, &plugged).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    let holder = assert_named_and_waited_for(&sandbox, &plugged, "process", "kill PID").await;
    assert_eq!(holder["container"], container.id());
    assert_eq!((&holder["command"], &holder["detail"]), (&"tail".into(), &"/dev/xvda".into()));
    assert!(claim_is_free(&volume));

    // Held through another device node, in a container that the request does not name, and closed
    // without the end of the process.
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let number = plugged.device_number().replace(':', " ");
    let script = format!("mknod /dev/own b {number}; mkfifo /tmp/close; ");
    let hold = "exec 3</dev/own; (read line </tmp/close; exec 3<&-; sleep 100000) </dev/null >/dev/null 2>&1 &";
    sibling.exec(&["sh", "-c", &(script + hold)]).await;
    let close = "echo now > /proc/PID/root/tmp/close";
    let holder = assert_named_and_waited_for(&sandbox, &plugged, "process", close).await;
    assert_eq!(
        (&holder["container"], &holder["detail"]),
        (&sibling.id().into(), &"/dev/own".into())
    );
}

#[rstest]
#[tokio::test]
async fn mounts_are_named_and_waited_for() {
    let sandbox = boot_with_tools().await;
    let container = sandbox.start_container_with(&ContainerOptions::privileged()).await;
    let volume = ext4_image(8 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.exec(&["mount", "-t", "ext4", "/dev/xvda", "/mnt"]).await;
    let umount = "nsenter --mount=/proc/PID/ns/mnt --root=/proc/PID/root /bin/umount /mnt";
    let holder = assert_named_and_waited_for(&sandbox, &plugged, "mount", umount).await;
    assert_eq!(
        (&holder["container"], &holder["detail"]),
        (&container.id().into(), &"/mnt (ext4)".into())
    );

    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let device = format!("/dev/{}", plugged.guest_device());
    sandbox.observer().shell(&format!("mkdir -p /mnt && mount -t ext4 {device} /mnt")).await;
    let holder = assert_named_and_waited_for(&sandbox, &plugged, "mount", "umount /mnt").await;
    assert_eq!((&holder["container"], &holder["detail"]), (&"".into(), &"/mnt (ext4)".into()));

    // A partition, and a mount that no process sees any more.
    let volume = Volume::image(8 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let device = format!("/dev/{}", plugged.guest_device());
    let script = format!(
        "printf 'o\\nn\\np\\n1\\n\\n\\nw\\n' | fdisk {device} >/dev/null && mkfs.ext4 -q {device}1 && mount -t ext4 {device}1 /mnt"
    );
    sandbox.observer().shell(&script).await;
    assert_named_and_waited_for(&sandbox, &plugged, "mount", "umount /mnt").await;
    let plugged = sandbox.hot_plug(&container, &ext4_image(8 * MIB), "/dev/xvda").await;
    let device = format!("/dev/{}", plugged.guest_device());
    let script = format!(
        "mount -t ext4 {device} /mnt && tail -f /dev/null </dev/null >/mnt/file 2>&1 & until test -e /mnt/file; do usleep 10000; done; umount -l /mnt"
    );
    sandbox.observer().shell(&script).await;
    assert_named_and_waited_for(&sandbox, &plugged, "unknown", CLOSE).await;
}

#[rstest]
#[tokio::test]
async fn devices_on_top_of_it_are_named_and_waited_for() {
    let sandbox = boot_with_tools().await;
    let container = sandbox.start_container().await;
    for (kind, detail, hold, release) in [
        (
            "dm",
            "dm-0 (made)",
            "dmsetup create --noudevsync made --table '0 2048 linear DEVICE 0'",
            "dmsetup remove --noudevsync made",
        ),
        (
            "md",
            "md0",
            "mdadm --build /dev/md0 --level=1 --raid-devices=1 --force --run DEVICE",
            "mdadm --stop /dev/md0",
        ),
        ("loop", "loop0", "losetup /dev/loop0 DEVICE", "losetup -d /dev/loop0"),
        ("swap", "DEVICE", "mkswap DEVICE && swapon DEVICE", "swapoff DEVICE"),
    ] {
        let volume = Volume::loop_device(8 * MIB);
        let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        let device = format!("/dev/{}", plugged.guest_device());
        let on_device = |text: &str| text.replace("DEVICE", &device);
        sandbox.observer().shell(&format!("{} 2>&1", on_device(hold))).await;
        let release = on_device(release);
        let holder =
            assert_named_and_waited_for(&sandbox, &plugged, kind, &format!("{release} 2>&1")).await;
        assert_eq!(holder["detail"], on_device(detail));
        assert!(claim_is_free(&volume), "{kind}");
    }
}

#[rstest]
#[tokio::test]
async fn a_wait_ends_at_its_deadline_or_by_a_signal_and_changes_nothing(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    open_in(&container, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = |wait| {
        verb(
            sandbox.ecr_runtime(),
            &sandbox,
            "hot-unplug",
            &["--volume", plugged.id(), "--wait", wait],
        )
    };
    let finished = ends_soon(&sandbox, command("1s").start()).await;
    let (reason, _) = finished.failed_with(5);
    assert_eq!(
        (reason.as_str(), &finished.json()["error"]["holders"][0]["kind"]),
        ("busy", &"process".into())
    );
    assert!(finished.elapsed >= Duration::from_secs(1), "{:?}", finished.elapsed);
    before.assert_unchanged(&sandbox, &[&container]).await;

    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let waiting = start_and_wait(&sandbox, &command("500s")).await;
        kill(Pid::from_raw(i32::try_from(waiting.id().unwrap()).unwrap()), signal).unwrap();
        let finished = ends_soon(&sandbox, waiting).await;
        assert_eq!(finished.status, 128 + signal as i32, "{}{}", finished.stdout, finished.stderr);
        // The guest must stop waiting. Otherwise it would detach the volume later, when that is no
        // longer wanted.
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    sandbox.observer().shell(CLOSE).await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    assert_eq!(unplug(&sandbox, &at(&container, "/dev/xvda")).await.result, "detached");
}

#[rstest]
#[tokio::test]
async fn other_commands_go_on_while_holders_are_waited_for(#[future(awt)] sandbox: Sandbox) {
    let (container, sibling) = (sandbox.start_container().await, sandbox.start_container().await);
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    open_in(&container, "/dev/xvda").await;
    let command = ["--volume", plugged.id(), "--wait", "100s"];
    let waiting = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &command);
    let mut waiting = start_and_wait(&sandbox, &waiting).await;

    let listed = query_volumes(&sandbox, "list", &[]).await;
    assert_eq!((listed.len(), &listed[0]["state"]), (1, &"attached".into()));
    let other = Volume::image(MIB);
    sandbox.hot_plug(&sibling, &other, "/dev/xvdb").await;
    assert_eq!(sibling.read("/dev/xvdb", 0..4096).await, other.bytes(0..4096));
    assert!(waiting.try_wait().unwrap().is_none(), "the command must wait");

    sandbox.observer().shell(CLOSE).await;
    let finished = ends_soon(&sandbox, waiting).await;
    assert_eq!(finished.succeeded(sandbox.guest())[0].result, "detached");
    assert!(claim_is_free(&volume));
    assert_eq!(unplug(&sandbox, &at(&sibling, "/dev/xvdb")).await.result, "detached");
}

#[rstest]
#[tokio::test]
async fn a_container_that_ends_is_waited_for(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&ContainerOptions::privileged()).await;
    let volume = ext4_image(8 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.exec(&["mount", "-t", "ext4", "/dev/xvda", "/mnt"]).await;
    let command = ["--volume", plugged.id(), "--wait", "100s"];
    let waiting = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &command);
    let waiting = start_and_wait(&sandbox, &waiting).await;
    container.kill().await.unwrap();
    container.remove().await.unwrap();
    let finished = ends_soon(&sandbox, waiting).await;
    assert_eq!(finished.succeeded(sandbox.guest())[0].result, "detached");
}

/// Starts a program outside of all containers that has a disk open, or claims it, until
/// `/run/release` exists. Returns when it has the disk.
async fn hold_in_guest(sandbox: &Sandbox, plugged: &Plugged, claims: bool) {
    let device = plugged.guest_device();
    let program = if claims {
        format!("/usr/bin/observer claim /dev/{device} /run/release")
    } else {
        format!("sh -c 'exec 3</dev/{device}; until test -e /run/release; do usleep 10000; done'")
    };
    let script = format!(
        "{program} </dev/null >/dev/null 2>&1 & \
         until ls -l /proc/$!/fd | grep -q /dev/{device}; do usleep 10000; done"
    );
    sandbox.observer().shell(&script).await;
}

async fn release_in_guest(sandbox: &Sandbox) {
    sandbox.observer().shell("touch /run/release").await;
}

/// Programs of the guest look at disks for a moment: no reason to refuse an unplug.
#[rstest]
#[tokio::test]
async fn a_program_of_the_guest_delays_an_unplug_for_a_moment_and_is_named_if_it_stays(
    #[values(false, true)] claims: bool,
) {
    let sandbox = boot_with_faults(&Machine::default()).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let unplug_it =
        verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"));

    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let attached = Snapshot::of(&sandbox, &[&container]).await;
    hold_in_guest(&sandbox, &plugged, claims).await;
    let (reason, message) = unplug_it.run().await.failed_with(5);
    assert_eq!(reason, "busy");
    assert!(message.contains("outside of containers"), "{message}");
    attached.assert_unchanged(&sandbox, &[&container]).await;
    let waiting = start_and_wait(&sandbox, &unplug_it).await;
    release_in_guest(&sandbox).await;
    let detached = ends_soon(&sandbox, waiting).await.succeeded(sandbox.guest());
    assert_eq!(detached[0].result, "detached");
    sandbox.observer().shell("rm /run/release").await;

    // One that comes when the container has lost the volume already. It cannot claim the disk.
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    set_guest_faults(&sandbox, "detach-after-flush=wait\n").await;
    let (seen, before_this) = (sandbox.guest().console().text().len(), waits(&sandbox));
    let call = unplug_it.start();
    wait_for_fault_point(&sandbox, seen, "detach-after-flush").await;
    hold_in_guest(&sandbox, &plugged, false).await;
    set_guest_faults(&sandbox, "").await;
    waits_again(&sandbox, before_this).await;
    release_in_guest(&sandbox).await;
    let detached = ends_soon(&sandbox, call).await.succeeded(sandbox.guest());
    assert_eq!(detached[0].result, "detached");
    sandbox.observer().shell("rm /run/release").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn a_holder_that_appears_during_a_detach_is_detected_and_the_volume_stays_attached(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
) {
    let sandbox = boot_with_faults(&Machine { cgroup, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.exec(&["sh", "-c", "chown 7:8 /dev/xvda; chmod 604 /dev/xvda"]).await;
    // Everything except the inode number.
    let node = ["stat", "-c", "%f %t:%T %u:%g", "/dev/xvda"];
    let (original, before) = (container.exec(&node).await, Snapshot::of(&sandbox, &[]).await);
    let allowed = if cgroup == Cgroup::V1 { rules(&sandbox, &container).await } else { Vec::new() };
    for point in ["release", "unlink", "revoke", "flush"] {
        // A second device node of the container, so that the disk can be opened after ours is gone.
        container.exec(&["sh", "-c", &format!("cp -a /dev/xvda /dev/own-{point}")]).await;
        set_guest_faults(&sandbox, &format!("detach-after-{point}=wait\n")).await;
        let command =
            verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"))
                .start();
        wait_for_console(&sandbox, &format!("fault point detach-after-{point}")).await;
        let path =
            if point == "release" { "/dev/xvda".to_owned() } else { format!("/dev/own-{point}") };
        let denied = cgroup == Cgroup::V1 && ["revoke", "flush"].contains(&point);
        if denied {
            container.exec_fails(&["sh", "-c", &format!("exec 3<{path}")]).await;
        } else {
            open_in(&container, &path).await;
        }
        set_guest_faults(&sandbox, "").await;
        let finished = ends_soon(&sandbox, command).await;
        if denied {
            // Without the device right no process can open the disk, and so the detach succeeds.
            assert_eq!(finished.succeeded(sandbox.guest())[0].result, "detached");
            return;
        }
        let (reason, message) = finished.failed_with(5);
        assert_eq!(reason, "busy", "{point}: {message}");
        let holder = &finished.json()["error"]["holders"][0];
        assert_eq!(
            (&holder["kind"], &holder["detail"]),
            (&"process".into(), &path.as_str().into()),
            "{point}"
        );
        assert_eq!(container.exec(&node).await, original, "{point}: the node is restored");
        if cgroup == Cgroup::V1 {
            assert_eq!(
                rules(&sandbox, &container).await,
                allowed,
                "{point}: the device right is restored"
            );
        }
        sandbox.observer().shell(CLOSE).await;
        before.assert_unchanged(&sandbox, &[]).await;
        assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
        assert_eq!(query_volumes(&sandbox, "list", &[]).await[0]["state"], "attached");
    }
    assert_eq!(unplug(&sandbox, &["--volume", plugged.id()]).await.result, "detached");
}

#[rstest]
#[tokio::test]
async fn force_breaks_a_mounted_file_system_under_writes_and_reports_it(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container_with(&ContainerOptions::privileged()).await;
    let witness = sandbox.start_container().await;
    let volume = ext4_image(32 * MIB);
    let other = Volume::image(MIB);
    sandbox.hot_plug(&witness, &other, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&witness]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.exec(&["mount", "-t", "ext4", "/dev/xvda", "/mnt"]).await;
    container.exec(&["sh", "-c", "echo kept > /mnt/before"]).await;
    let writer = container.clone();
    let writes = "i=0; while dd if=/dev/urandom of=/mnt/$((i % 8)) bs=64k count=8 conv=fsync 2>&1; do i=$((i+1)); done; echo end";
    let writer = tokio::spawn(async move { writer.exec(&["sh", "-c", writes]).await });
    container.exec(&["sh", "-c", "until test -e /mnt/3; do sleep 0.05; done"]).await;
    open_in(&container, "/dev/xvda").await;

    let refused = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"))
        .run()
        .await;
    refused.failed_with(5);
    let forced = [&at(&container, "/dev/xvda")[..], &["--force"]].concat();
    let finished = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &forced).run().await;
    assert_eq!(finished.succeeded(sandbox.guest())[0].result, "detached");
    let mut kinds: Vec<_> = finished.json()["broken_holders"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["kind"].clone())
        .collect();
    kinds.sort_by_key(Value::to_string);
    assert_eq!(kinds, ["mount", "process"], "{}", finished.stdout);
    assert!(claim_is_free(&volume), "the host can claim it again");

    // The writer gets errors, the rest of the guest continues.
    let output = sandbox
        .guest()
        .wait_for("the writer's end", Duration::from_secs(20), writer)
        .await
        .unwrap()
        .unwrap();
    assert!(String::from_utf8_lossy(&output).contains("end"));
    container.exec(&["umount", "/mnt"]).await;
    sandbox.observer().shell(CLOSE).await;
    assert_eq!(witness.read("/dev/xvda", 0..MIB).await, other.bytes(0..MIB));
    // With the next request the agent notices that no descriptor refers to the node any more.
    query_volumes(&sandbox, "list", &[]).await;
    before.assert_unchanged(&sandbox, &[&witness]).await;

    // Data that was written back before the detach is on the volume.
    let checked =
        std::process::Command::new("e2fsck").args(["-fy", volume.name()]).output().unwrap();
    assert!(checked.status.code().unwrap() < 4, "{}", String::from_utf8_lossy(&checked.stdout));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.exec(&["mount", "-t", "ext4", "/dev/xvda", "/mnt"]).await;
    assert_eq!(container.exec(&["cat", "/mnt/before"]).await, b"kept\n");
    container.exec(&["umount", "/mnt"]).await;
    assert_eq!(unplug(&sandbox, &at(&container, "/dev/xvda")).await.result, "detached");
}

#[rstest]
#[tokio::test]
async fn one_attachment_is_removed_while_another_container_uses_the_disk(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let (first, second) = (sandbox.start_container().await, sandbox.start_container().await);
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&first, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&first, &second]).await;
    let attachment = Attachment {
        container_id: second.id().to_owned(),
        path: "/dev/shared".to_owned(),
        ..plugged.attachment()
    };
    let service = sandbox.block_volume_service().await.unwrap();
    let context = || sandbox.agent().context();
    let attach = AttachRequest {
        attachments: vec![attachment.clone()],
        timeout_ms: 20_000,
        ..Default::default()
    };
    let attached = service.attach(context(), &attach).await.unwrap();
    assert!(attached.failure.is_none(), "{attached}");
    assert_eq!(second.read("/dev/shared", 0..65536).await, volume.bytes(0..65536));

    let outcome = attached.attached[0].outcome.clone();
    let detachment = Detachment {
        attachment: Some(attachment).into(),
        outcome,
        keep_disk: true,
        ..Default::default()
    };
    let detach =
        DetachRequest { detachments: vec![detachment], timeout_ms: 20_000, ..Default::default() };
    // A holder in the other container does not prevent the detach, a holder in this one does.
    open_in(&first, "/dev/xvda").await;
    open_in(&second, "/dev/shared").await;
    let refused = service.detach(context(), &detach).await.unwrap();
    assert_eq!(refused.failure.reason.enum_value().unwrap(), Reason::REASON_BUSY, "{refused}");
    assert_eq!(refused.holders.len(), 1, "{refused}");
    assert_eq!(refused.holders[0].container_id, second.id());
    assert_eq!(second.read("/dev/shared", 0..65536).await, volume.bytes(0..65536));
    sandbox.observer().shell(CLOSE).await;
    open_in(&first, "/dev/xvda").await;
    let detached = service.detach(context(), &detach).await.unwrap();
    assert!(detached.failure.is_none() && !detached.detached[0].unchanged, "{detached}");
    drop(service);
    sandbox.observer().shell(CLOSE).await;
    assert_eq!(first.read("/dev/xvda", 0..MIB).await, volume.bytes(0..MIB));
    before.assert_unchanged(&sandbox, &[&first, &second]).await;
    assert_eq!(unplug(&sandbox, &at(&first, "/dev/xvda")).await.result, "detached");
}
