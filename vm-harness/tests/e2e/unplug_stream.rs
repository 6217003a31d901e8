//! Hot-unplug as a conversation: QEMU removes a disk while the guest's kernel does. Each may be
//! first, and the kernel has nothing to complain about.

use std::time::Duration;

use block_volume_api::block_volume::{DetachRequest, Detachment, unplug_response::Step};
use protobuf::MessageField;
use rstest::rstest;
use serde_json::{Value, json};
use vm_harness::{
    Cgroup, Container, Fault, Finished, Machine, Plugged, Rule, Sandbox, Scan, Snapshot, Volume,
    command, random_bytes, remove_from_qemu,
};

use super::{
    MIB, boot, boot_with_faults,
    host_failures::claim_is_free,
    hot_unplug::{at, unplug, unplug_command, verb},
    qmp_faults::through_proxy,
    sandbox, sandbox_with_faults, set_guest_faults, wait_for_fault_point,
};

/// What a kernel prints of a disk that is removed too early, in small letters.
const COMPLAINTS: [&str; 9] = [
    "synchronize cache",
    "i/o error",
    "did_bad_target",
    "hostbyte",
    "sysfs",
    "kobject",
    "lost async page write",
    "warning",
    "rejecting i/o",
];

/// The lines of the guest's kernel that begin with the line `from`.
async fn kernel_log(sandbox: &Sandbox, from: usize) -> Vec<String> {
    let log = sandbox.observer().shell("dmesg").await;
    log.lines().skip(from).map(str::to_owned).collect()
}

/// Checks that the guest's kernel has not complained since the line `from` of its log.
async fn assert_no_complaint(sandbox: &Sandbox, from: usize) {
    let log = kernel_log(sandbox, from).await;
    let complains = |line: &&String| {
        let line = line.to_lowercase();
        COMPLAINTS.iter().any(|complaint| line.contains(complaint))
    };
    let complaints: Vec<_> = log.iter().filter(complains).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

async fn plug_all(
    sandbox: &Sandbox,
    container: &Container,
    volumes: &[(Volume, &str)],
) -> Vec<Plugged> {
    let all: Vec<_> = volumes.iter().map(|(volume, path)| (volume, *path)).collect();
    let finished = sandbox.hot_plug_command(container, &all).run().await;
    finished.succeeded(sandbox.guest())
}

/// Writes to each volume in the container, without a flush. Returns what was written.
async fn write_all(container: &Container, volumes: &[(Volume, &str)]) -> Vec<Vec<u8>> {
    let mut written = Vec::new();
    for (_, path) in volumes {
        let fresh = random_bytes(2 * 1_048_576);
        let target = format!("of={path}");
        let write = ["dd", &target, "bs=64k", "iflag=fullblock", "seek=16", "conv=notrunc"];
        container.exec_with_input(&write, &fresh).await;
        written.push(fresh);
    }
    written
}

#[rstest]
#[tokio::test]
async fn kernel_has_nothing_to_complain_about_after_writes(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
    #[values(Scan::None, Scan::Async)] scan: Scan,
) {
    let sandbox = boot(&Machine { cgroup, scan, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volumes =
        ["/dev/xvda", "/dev/xvdb", "/dev/xvdc"].map(|path| (Volume::loop_device(4 * MIB), path));
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let from = kernel_log(&sandbox, 0).await.len();

    // One after the other, each by a command.
    plug_all(&sandbox, &container, &volumes).await;
    let written = write_all(&container, &volumes).await;
    for (volume, path) in &volumes {
        unplug(&sandbox, &at(&container, path)).await;
        assert!(claim_is_free(volume), "{path}");
    }
    for ((volume, path), written) in volumes.iter().zip(written) {
        assert!(volume.bytes(MIB..3 * MIB) == written, "{path} has what was written");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;

    // All at once: QEMU removes disks whose turn in the guest has not come yet.
    let plugged = plug_all(&sandbox, &container, &volumes).await;
    let written = write_all(&container, &volumes).await;
    unplug_at_once(&sandbox, &plugged).await;
    for ((volume, path), written) in volumes.iter().zip(written) {
        assert!(volume.bytes(MIB..3 * MIB) == written, "{path} has what was written");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_no_complaint(&sandbox, from).await;
}

/// Unplugs several volumes by one request, and removes all their devices when they are released.
async fn unplug_at_once(sandbox: &Sandbox, plugged: &[Plugged]) {
    let detachment = |one: &Plugged| Detachment {
        attachment: MessageField::some(one.attachment()),
        ..Detachment::default()
    };
    let request = DetachRequest {
        detachments: plugged.iter().map(detachment).collect(),
        timeout_ms: 10_000 * u64::from(sandbox.guest().time_scale()),
        ..DetachRequest::default()
    };
    let mut monitor = sandbox.monitor().await.unwrap_or_else(|e| panic!("{}", e.chain()));
    let service = sandbox.block_volume_service().await.unwrap_or_else(|e| panic!("{}", e.chain()));
    let mut stream = service.unplug(sandbox.agent().context(), &request).await.unwrap();
    let Some(Step::Released(released)) = stream.recv().await.unwrap().unwrap().step else {
        panic!("the disks are not released")
    };
    let ids: Vec<_> = plugged.iter().map(|one| one.id().to_owned()).collect();
    assert_eq!(released.serials, ids);
    for id in &ids {
        let removed = monitor.execute("device_del", json!({ "id": format!("ecrblk-{id}") })).await;
        removed.unwrap();
    }
    let Some(Step::Detached(reply)) = stream.recv().await.unwrap().unwrap().step else {
        panic!("the disks are not detached")
    };
    assert!(reply.failure.is_none() && reply.detached.len() == ids.len(), "{reply}");
    for id in &ids {
        remove_rest_from_qemu(&mut monitor, id).await;
    }
}

/// Removes block node and descriptors of a volume whose device QEMU removes.
async fn remove_rest_from_qemu(monitor: &mut block_volume_qmp::Qmp, id: &str) {
    let path = format!("/machine/peripheral/ecrblk-{id}");
    let is_gone = async |monitor: &mut block_volume_qmp::Qmp| {
        let deadline = block_volume_qmp::Deadline::after(Duration::from_secs(30));
        loop {
            let event = monitor.next_event(deadline).await.expect("the device is deleted");
            if event.name == "DEVICE_DELETED" && event.data["path"] == path.as_str() {
                return;
            }
        }
    };
    is_gone(monitor).await;
    let node = json!({ "node-name": format!("ecrblk-{id}-n") });
    monitor.execute("blockdev-del", node).await.unwrap();
    let sets = monitor.execute("query-fdsets", json!({})).await.unwrap();
    for set in sets.as_array().into_iter().flatten().filter(|set| set.to_string().contains(id)) {
        let set = json!({ "fdset-id": set["fdset-id"] });
        monitor.execute("remove-fd", set).await.unwrap();
    }
}

/// The kernel removes the disk itself when QEMU has removed it. The plugin, which is held up, finds
/// that it is gone.
#[rstest]
#[tokio::test]
async fn disk_that_the_kernel_removes_first_is_detached(
    #[values(Scan::None, Scan::Async)] scan: Scan,
) {
    let sandbox = boot_with_faults(&Machine { scan, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let from = kernel_log(&sandbox, 0).await.len();

    let point = "detach-after-released";
    set_guest_faults(&sandbox, &format!("{point}=wait\n")).await;
    let seen = sandbox.guest().console().text().len();
    let call = unplug_command(&sandbox, &container, "/dev/xvda").start();
    wait_for_fault_point(&sandbox, seen, point).await;
    let disk = plugged.guest_device();
    let script = format!("until ! test -e /sys/block/{disk}; do sleep 0.01; done");
    sandbox.observer().shell(&script).await;
    set_guest_faults(&sandbox, "").await;
    let finished = Finished::new(&call.wait_with_output().await.unwrap(), Duration::ZERO);
    assert_eq!(finished.succeeded(sandbox.guest())[0].result, "detached");
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
    assert_no_complaint(&sandbox, from).await;
}

#[rstest]
#[tokio::test]
async fn disk_that_the_guest_removes_first_is_detached(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let from = kernel_log(&sandbox, 0).await.len();
    let late = sandbox.ecr_runtime_with_faults("after-released=delay:800");
    let call = verb(late, &sandbox, "hot-unplug", &at(&container, "/dev/xvda"));
    call.run().await.succeeded(sandbox.guest());
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_no_complaint(&sandbox, from).await;
}

/// A detach that fails after it has stopped the flushes restores them: the container relies on them
/// again.
#[rstest]
#[tokio::test]
async fn flushes_are_restored_with_the_rest(#[future(awt)] sandbox_with_faults: Sandbox) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let cache = format!("cat /sys/block/{}/device/scsi_disk/*/cache_type", plugged.guest_device());
    let flushes = format!("cat /sys/block/{}/queue/write_cache", plugged.guest_device());
    let state = async || {
        let observer = sandbox.observer();
        (observer.shell(&cache).await, observer.shell(&flushes).await)
    };
    let before = (Snapshot::of(&sandbox, &[&container]).await, state().await);
    assert_eq!(before.1.0.trim(), "write back", "QEMU's disks have a cache");
    set_guest_faults(&sandbox, "detach-after-quiesce=error\n").await;
    let failed = unplug_command(&sandbox, &container, "/dev/xvda").run().await;
    set_guest_faults(&sandbox, "").await;
    failed.failed_with(1);
    assert_eq!(state().await, before.1);
    before.0.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
}

/// The guest has released the disk and removes it, and QEMU keeps the device.
#[rstest]
#[tokio::test]
async fn device_that_qemu_does_not_remove_is_incomplete_and_repaired(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let refused = Fault::edit_json(|command| command["arguments"]["id"] = json!(7));
    let rules = vec![Rule::on(command("device_del"), refused)];
    let call = unplug_command(&sandbox, &container, "/dev/xvda");
    let (finished, commands) = through_proxy(&sandbox, call, rules).await;
    let (reason, message) = finished.failed_with(8);
    assert_eq!(reason, "incomplete", "{message}");
    // QEMU's own words, and not that its event did not come in time.
    assert!(message.contains("expected: string"), "{message}");
    assert!(!commands.iter().any(|command| command == "blockdev-del"), "{commands:?}");
    let repaired = verb(sandbox.ecr_runtime(), &sandbox, "repair", &[]).run().await;
    assert_eq!(repaired.status, 0, "{}", repaired.stdout);
    assert_eq!(repaired.json()["volumes"][0]["state_after"], Value::from("gone"));
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}

/// An agent of an earlier version, or a host of one, detaches as before.
#[rstest]
#[tokio::test]
async fn old_form_of_a_detach_removes_the_disk_alone(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let from = kernel_log(&sandbox, 0).await.len();
    let reply = sandbox.detach(&plugged).await.unwrap();
    assert!(reply.failure.is_none(), "{reply}");
    let disk = sandbox.observer().shell("ls /sys/block").await;
    assert!(!disk.split_whitespace().any(|disk| disk == plugged.guest_device()), "{disk}");
    let mut monitor = sandbox.monitor().await.unwrap_or_else(|e| panic!("{}", e.chain()));
    remove_from_qemu(&mut monitor, plugged.id()).await;
    drop(monitor);
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_no_complaint(&sandbox, from).await;
}
