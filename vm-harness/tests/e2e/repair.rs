//! `repair` on real VMs: what a killed command left becomes completely attached or completely
//! removed, and objects that `ecr-runtime` does not own are not touched.

use rstest::rstest;
use serde_json::{Value, json};
use vm_harness::{
    Cgroup, Container, EcrRuntime, Finished, Machine, QmpProxy, Sandbox, Snapshot, Volume,
};

use super::{
    MIB, boot, ext4_image, guarded, host_failures::claim_is_free, hot_unplug::verb, mount_in_guest,
    sandbox,
};

/// Runs `repair` and checks that it exits with `status`.
pub(crate) async fn repair(sandbox: &Sandbox, status: i32, more: &[&str]) -> Value {
    let finished = verb(sandbox.ecr_runtime(), sandbox, "repair", more).run().await;
    assert_eq!(finished.status, status, "{}{}", finished.stdout, finished.stderr);
    finished.json()
}

/// Returns what `repair` reports of its only volume: the state before, the action, the state after.
pub(crate) fn only(repaired: &Value) -> [String; 3] {
    let volumes = repaired["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 1, "{repaired}");
    let text = |key: &str| volumes[0][key].as_str().unwrap().to_owned();
    [state_of(&volumes[0]), text("action"), text("state_after")]
}

/// Returns the state of a volume and its cause: `attached`, `stale: container_gone`.
pub(crate) fn state_of(volume: &Value) -> String {
    let state = volume["state"].as_str().unwrap_or_else(|| panic!("no state: {volume}"));
    match volume["cause"].as_str() {
        Some(cause) => format!("{state}: {cause}"),
        None => state.to_owned(),
    }
}

pub(crate) async fn state(sandbox: &Sandbox) -> String {
    let listed = verb(sandbox.ecr_runtime(), sandbox, "list", &[]).run().await.json();
    assert_eq!(listed["guest_error"], Value::Null, "the guest was asked: {listed}");
    state_of(&listed["volumes"][0])
}

async fn killed(
    sandbox: &Sandbox,
    point: &str,
    call: impl FnOnce(EcrRuntime) -> EcrRuntime,
) -> Finished {
    let finished = call(sandbox.ecr_runtime_with_faults(&format!("{point}=kill"))).run().await;
    assert_eq!(finished.status, 128 + 9, "{point}: {}{}", finished.stdout, finished.stderr);
    // The guest rolls back what was not committed.
    sandbox.until_plugin_is_idle().await.unwrap();
    finished
}

fn path_of(container: &Container) -> [&str; 4] {
    ["--container", container.id(), "--device-path", "/dev/xvda"]
}

#[rstest]
#[tokio::test]
async fn killed_plug_is_completed_or_rolled_back(#[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let neighbour = Volume::image(MIB);
    sandbox.hot_plug(&container, &neighbour, "/dev/neighbour").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for (point, action, after) in [
        ("after-add-fd", "rolled_back", "gone"),
        ("after-blockdev-add", "rolled_back", "gone"),
        ("after-ready", "rolled_back", "gone"),
        ("after-device-add", "rolled_back", "gone"),
        ("after-go", "rolled_back", "gone"),
        ("after-prepared", "rolled_back", "gone"),
        ("after-record", "completed", "gone"),
        ("after-attach", "completed", "gone"),
        ("after-commit", "kept", "attached"),
    ] {
        let volume = Volume::loop_device(MIB);
        killed(&sandbox, point, |runtime| {
            runtime.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")])
        })
        .await;
        let left = Snapshot::of(&sandbox, &[&container]).await;
        let predicted = repair(&sandbox, 0, &["--dry-run"]).await;
        left.assert_unchanged(&sandbox, &[&container]).await;
        let repaired = repair(&sandbox, 0, &[]).await;
        let of_volume = |report: &Value| {
            let volumes = report["volumes"].as_array().unwrap().clone();
            let is_neighbour = |volume: &&Value| volume["device_path"] == "/dev/neighbour";
            let kept: Vec<_> = volumes.iter().filter(is_neighbour).collect();
            assert!(kept.len() == 1 && kept[0]["action"] == "kept", "{report}");
            volumes.into_iter().find(|volume| volume["device_path"] == "/dev/xvda").unwrap()
        };
        let (actual, predicted) = (of_volume(&repaired), of_volume(&predicted));
        assert_eq!(
            (&actual["action"], &actual["state_after"]),
            (&action.into(), &after.into()),
            "{point}: {actual}"
        );
        assert_eq!(
            (&predicted["action"], &predicted["state_after"]),
            (&action.into(), &after.into()),
            "{point}: {predicted}"
        );
        if after == "attached" {
            assert_eq!(
                container.read("/dev/xvda", 0..65536).await,
                volume.bytes(0..65536),
                "{point}"
            );
            let same = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
            assert_eq!(same.result, "unchanged", "{point}");
            let gone = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &path_of(&container))
                .run()
                .await;
            assert_eq!(gone.status, 0, "{point}: {}", gone.stdout);
        }
        if cgroup == Cgroup::V2 {
            before.assert_unchanged(&sandbox, &[&container]).await;
        }
        assert!(claim_is_free(&volume), "{point}");
    }
    assert_eq!(container.read("/dev/neighbour", 0..MIB).await, neighbour.bytes(0..MIB));
}

#[rstest]
#[tokio::test]
async fn killed_unplug_is_completed(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(MIB);
    for point in
        ["after-released", "remove-after-device-del", "after-detach", "remove-after-blockdev-del"]
    {
        sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        killed(&sandbox, point, |runtime| {
            verb(runtime, &sandbox, "hot-unplug", &path_of(&container))
        })
        .await;
        assert_eq!(state(&sandbox).await, "incomplete", "{point}");
        let repaired = repair(&sandbox, 0, &[]).await;
        assert_eq!(only(&repaired), ["incomplete", "completed", "gone"], "{point}: {repaired}");
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{point}");
    }
}

#[rstest]
#[tokio::test]
async fn node_that_the_container_removed_is_created_again(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&guarded()).await;
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.exec(&["rm", "/dev/xvda"]).await;
    let repaired = repair(&sandbox, 0, &[]).await;
    assert_eq!(only(&repaired), ["incomplete", "completed", "attached"], "{repaired}");
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    // A file that the container creates at the path belongs to the container. Then the volume is
    // removed completely.
    container.exec(&["sh", "-c", "rm /dev/xvda && echo mine > /dev/xvda"]).await;
    let repaired = repair(&sandbox, 0, &[]).await;
    assert_eq!(only(&repaired), ["incomplete", "rolled_back", "gone"], "{repaired}");
    assert_eq!(container.exec(&["cat", "/dev/xvda"]).await, b"mine\n");
    assert!(claim_is_free(&volume));
}

#[rstest]
#[tokio::test]
async fn volume_in_use_is_kept_and_reported(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = ext4_image(8 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    mount_in_guest(&sandbox, &plugged).await;
    container.kill().await.unwrap();
    let repaired = repair(&sandbox, 8, &[]).await;
    assert_eq!(only(&repaired), ["stale: container_gone", "failed", "unknown"], "{repaired}");
    sandbox
        .observer()
        .shell("echo alive > /mnt/file && sync && cat /mnt/file && umount /mnt")
        .await;
    let repaired = repair(&sandbox, 0, &[]).await;
    assert_eq!(only(&repaired), ["stale: container_gone", "rolled_back", "gone"], "{repaired}");
}

/// A block node, a device and descriptor sets that `ecr-runtime` does not own, some with names that
/// resemble its own. QEMU must receive queries only.
#[rstest]
#[tokio::test]
async fn objects_that_ecr_runtime_does_not_own_are_not_touched(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let mut monitor = sandbox.monitor().await.unwrap();
    let null = || std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    for opaque in ["serial0-source", "ecrblk2:{}", "ecrblk1:{\"v\":2,\"id\":\"0123456789abcdef\"}"]
    {
        monitor.add_fd(null(), None, opaque).await.unwrap();
    }
    let file = json!({"driver": "file", "filename": volume.name()});
    let node = json!({"driver": "raw", "node-name": "ecrblk-theirs-n", "file": file});
    monitor.execute("blockdev-add", node).await.unwrap();
    let device = json!({"driver": "scsi-hd", "id": "ecrblk-theirs", "drive": "ecrblk-theirs-n", "bus": "scsi0.0",
        "scsi-id": 1, "lun": 1, "serial": "0123456789abcdef"});
    monitor.execute("device_add", device).await.unwrap();
    // The harness's socket serves one client at a time, too.
    drop(monitor);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
    let repaired = repair(&sandbox, 0, &["--qmp", proxy.path().to_str().unwrap()]).await;
    assert_eq!((&repaired["result"], &repaired["volumes"]), (&"unchanged".into(), &json!([])));
    let is_query =
        |name: &String| name.contains("query-") || name == "qom-list" || name == "qmp_capabilities";
    assert!(proxy.commands().iter().all(is_query), "{:?}", proxy.commands());
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn without_an_agent_nothing_unsafe_is_done(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let (volume, partial) = (Volume::loop_device(MIB), Volume::loop_device(MIB));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    killed(&sandbox, "after-blockdev-add", |runtime| {
        runtime.hot_plug(sandbox.id(), container.id(), &[(&partial, "/dev/xvdb")])
    })
    .await;
    let repaired = repair(&sandbox, 8, &["--agent", "unix:///nonexistent/agent.sock"]).await;
    assert_eq!(repaired["error"]["exit_code"], 8, "{repaired}");
    for volume in repaired["volumes"].as_array().unwrap() {
        let expected = if volume["device_path"] == "/dev/xvda" { "failed" } else { "rolled_back" };
        assert_eq!(volume["action"], expected, "{repaired}");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&partial) && !claim_is_free(&volume));
    assert_eq!(repair(&sandbox, 0, &[]).await["result"], "unchanged");
}
