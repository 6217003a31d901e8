//! `hot-unplug`, `list` and `inspect` on real VMs: after an unplug nothing of the volume is left,
//! and the output of the commands is true.

use rstest::rstest;
use serde_json::Value;
use vm_harness::{
    Cgroup, Container, ContainerOptions, EcrRuntime, Machine, Plugged, QmpProxy, Sandbox, Snapshot,
    Volume,
};

use super::{
    MIB, boot, ext4_image, guarded, host_failures::claim_is_free, mount_in_guest, repair::state_of,
    sandbox,
};

/// Returns the command `ecr-runtime block-volume VERB` for this sandbox, with JSON output.
pub(crate) fn verb(
    runtime: EcrRuntime,
    sandbox: &Sandbox,
    verb: &str,
    more: &[&str],
) -> EcrRuntime {
    runtime.args(["block-volume", verb, "--output", "json", "--sandbox", sandbox.id()]).args(more)
}

/// Returns the arguments that select the volume at the device path of the container.
pub(crate) fn at<'a>(container: &'a Container, path: &'a str) -> [&'a str; 4] {
    ["--container", container.id(), "--device-path", path]
}

/// Returns the command that unplugs the volume at the device path of the container.
pub(crate) fn unplug_command(sandbox: &Sandbox, container: &Container, path: &str) -> EcrRuntime {
    verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &at(container, path))
}

pub(crate) async fn unplug(sandbox: &Sandbox, more: &[&str]) -> Plugged {
    let finished = verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", more).run().await;
    finished.succeeded(sandbox.guest()).remove(0)
}

/// Returns the volumes in the output of `list` or `inspect`.
pub(crate) async fn query_volumes(sandbox: &Sandbox, command: &str, more: &[&str]) -> Vec<Value> {
    let finished = verb(sandbox.ecr_runtime(), sandbox, command, more).run().await;
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    let json = finished.json();
    assert_eq!(json["guest_error"], Value::Null, "the guest was asked: {json}");
    json["volumes"].as_array().unwrap().clone()
}

/// Returns the device rules of `container` from the kernel (cgroup v1).
pub(super) async fn rules(sandbox: &Sandbox, container: &Container) -> Vec<String> {
    let id = container.id();
    let text = sandbox
        .observer()
        .shell(&format!("cat /sys/fs/cgroup/devices/pod/{id}/devices.list"))
        .await;
    text.lines().map(str::to_owned).collect()
}

#[rstest]
#[tokio::test]
async fn unplug_leaves_nothing_and_the_data_is_correct_when_plugged_again(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let (volume, neighbour) = (Volume::loop_device(4 * MIB), Volume::image(2 * MIB));
    sandbox.hot_plug(&container, &neighbour, "/dev/neighbour").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let fresh = vm_harness::random_bytes(65536);
    container.write("/dev/xvda", MIB, &fresh).await;
    assert!(!claim_is_free(&volume));

    let gone = unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    assert_eq!((gone.result.as_str(), gone.id()), ("detached", plugged.id()));
    assert_eq!(gone.volume["scsi"], plugged.volume["scsi"]);
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume), "the host can claim it again");
    assert_eq!(volume.bytes(MIB..MIB + 65536), fresh, "what the container wrote is on the volume");
    let disks = sandbox.observer().shell("ls /sys/block").await;
    assert!(!disks.split_whitespace().any(|disk| disk == plugged.guest_device()), "{disks}");

    let again = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!((again.result.as_str(), again.id()), ("attached", plugged.id()));
    assert_eq!(container.read("/dev/xvda", 0..4 * MIB).await, volume.bytes(0..4 * MIB));
    assert_eq!(container.read("/dev/neighbour", 0..2 * MIB).await, neighbour.bytes(0..2 * MIB));
}

#[rstest]
#[tokio::test]
async fn missing_volume_is_reported_and_other_containers_are_not_affected(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let other = sandbox.start_container().await;
    let volume = Volume::loop_device(2 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let containers = [&container, &other];
    let before = Snapshot::of(&sandbox, &containers).await;
    let by_id = ["--volume", plugged.id()];
    let in_other = [&by_id[..], &["--container", other.id()]].concat();
    for (reason, status, more) in [
        ("volume_not_found", 3, &at(&container, "/dev/xvdb")[..]),
        ("volume_not_found", 3, &at(&other, "/dev/xvda")),
        // A device node of the container itself.
        ("volume_not_found", 3, &at(&container, "/dev/null")),
        ("other_container", 4, &in_other),
        ("usage", 2, &["--volume", "sda"]),
    ] {
        let finished = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", more).run().await;
        let (reported, message) = finished.failed_with(status);
        assert_eq!(reported, reason, "{message}");
        assert!(
            status != 3 || message.contains(more[3]),
            "the message names what was requested: {message}"
        );
    }
    before.assert_unchanged(&sandbox, &containers).await;

    assert_eq!(unplug(&sandbox, &by_id).await.result, "detached");
    let again = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &by_id).run().await;
    assert_eq!((again.status, &again.json()["result"]), (0, &Value::from("unchanged")));
    let again = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"))
        .run()
        .await;
    again.failed_with(3);
}

#[rstest]
#[tokio::test]
async fn volume_in_use_is_kept_and_remains_usable(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = ext4_image(8 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    mount_in_guest(&sandbox, &plugged).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let finished =
        verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"))
            .run()
            .await;
    let (reason, message) = finished.failed_with(5);
    assert_eq!(reason, "busy");
    assert!(message.contains("mount /mnt (ext4)"), "{message}");
    before.assert_unchanged(&sandbox, &[&container]).await;
    // The mount and the container can still use it.
    sandbox.observer().shell("echo alive > /mnt/file && sync && cat /mnt/file").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    assert_eq!(query_volumes(&sandbox, "list", &[]).await[0]["state"], "attached");
    sandbox.observer().shell("umount /mnt").await;
    assert_eq!(unplug(&sandbox, &at(&container, "/dev/xvda")).await.result, "detached");
}

#[rstest]
#[case::killed(false)]
#[case::removed(true)]
#[tokio::test]
async fn volume_of_a_container_that_is_gone_is_stale_and_can_be_unplugged(
    #[future(awt)] sandbox: Sandbox,
    #[case] removed: bool,
) {
    let witness = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&witness]).await;
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(2 * MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.kill().await.unwrap();
    if removed {
        container.remove().await.unwrap();
        sandbox.run_directory().remove_container(container.id());
    }
    let listed = query_volumes(&sandbox, "list", &["--container", container.id()]).await;
    assert_eq!(state_of(&listed[0]), "stale: container_gone", "{listed:?}");
    assert_eq!(listed[0]["guest"]["disk_present"], true, "{listed:?}");
    assert_eq!(unplug(&sandbox, &at(&container, "/dev/xvda")).await.result, "detached");
    assert!(query_volumes(&sandbox, "list", &[]).await.is_empty());
    assert!(claim_is_free(&volume));
    if !removed {
        container.remove().await.unwrap();
    }
    before.assert_unchanged(&sandbox, &[&witness]).await;
}

#[rstest]
#[tokio::test]
async fn leftovers_of_a_killed_plug_or_unplug_are_listed_and_removed(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for point in [
        "after-add-fd",
        "after-blockdev-add",
        "after-ready",
        "after-device-add",
        "after-prepared",
        "after-attach",
        "after-commit",
    ] {
        let volume = Volume::loop_device(MIB);
        let command = sandbox.ecr_runtime_with_faults(&format!("{point}=kill"));
        let killed =
            command.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).run().await;
        assert_eq!(killed.status, 128 + 9, "{point}");
        sandbox.until_plugin_is_idle().await.unwrap();
        let listed = query_volumes(&sandbox, "list", &[]).await;
        let expected = if point == "after-commit" { "attached" } else { "incomplete" };
        assert_eq!(
            (listed.len(), &listed[0]["state"]),
            (1, &Value::from(expected)),
            "{point}: {listed:?}"
        );
        assert_eq!(
            unplug(&sandbox, &at(&container, "/dev/xvda")).await.result,
            "detached",
            "{point}"
        );
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{point}");
    }
    let volume = Volume::loop_device(MIB);
    for point in
        ["after-released", "remove-after-device-del", "after-detach", "remove-after-blockdev-del"]
    {
        sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        let command = sandbox.ecr_runtime_with_faults(&format!("{point}=kill"));
        let killed =
            verb(command, &sandbox, "hot-unplug", &at(&container, "/dev/xvda")).run().await;
        assert_eq!(killed.status, 128 + 9, "{point}");
        assert_eq!(query_volumes(&sandbox, "list", &[]).await[0]["state"], "incomplete", "{point}");
        assert_eq!(
            unplug(&sandbox, &at(&container, "/dev/xvda")).await.result,
            "detached",
            "{point}"
        );
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{point}");
    }
}

#[rstest]
#[tokio::test]
async fn device_rights_that_existed_before_or_belong_to_a_sibling_are_kept() {
    let sandbox = boot(&Machine { cgroup: Cgroup::V1, ..Machine::default() }).await;
    let (without, sibling) = (sandbox.start_container().await, sandbox.start_container().await);
    // The first SCSI disk is 8:0 in every guest. The pod's cgroup is the parent of the containers'.
    for cgroup in ["pod".to_owned(), format!("pod/{}", sibling.id())] {
        let file = format!("/sys/fs/cgroup/devices/{cgroup}/devices.allow");
        sandbox.observer().write(&file, "b 8:0 rw").await.unwrap();
    }
    let by_specification =
        ContainerOptions { block_devices: vec![(8, 0)], ..ContainerOptions::default() };
    let with_right = sandbox.start_container_with(&by_specification).await;
    let rule = "b 8:0 rw".to_owned();
    assert!(!rules(&sandbox, &without).await.contains(&rule));
    assert!(rules(&sandbox, &with_right).await.contains(&rule));
    assert!(rules(&sandbox, &sibling).await.contains(&rule));
    for (container, had_it) in [(&with_right, true), (&without, false)] {
        let volume = Volume::image(MIB);
        let plugged = sandbox.hot_plug(container, &volume, "/dev/xvda").await;
        assert_eq!(plugged.device_number(), "8:0");
        assert!(rules(&sandbox, container).await.contains(&rule));
        unplug(&sandbox, &at(container, "/dev/xvda")).await;
        assert_eq!(rules(&sandbox, container).await.contains(&rule), had_it);
        assert!(rules(&sandbox, &sibling).await.contains(&rule), "a sibling keeps its right");
    }
}

#[rstest]
#[tokio::test]
async fn list_and_inspect_report_the_real_state_and_change_nothing(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container_with(&guarded()).await;
    let other = sandbox.start_container().await;
    let (volume, read_only) = (Volume::loop_device(2 * MIB), Volume::image(4 * MIB));
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let command =
        sandbox.hot_plug_command(&other, &[(&read_only, "/dev/xvdb")]).args(["--read-only"]);
    command.run().await.succeeded(sandbox.guest());
    let containers = [&container, &other];
    let before = Snapshot::of(&sandbox, &containers).await;

    let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
    let socket = proxy.path();
    let through_proxy = ["--qmp", socket.to_str().unwrap()];
    let listed = query_volumes(&sandbox, "list", &through_proxy).await;
    let of_other = query_volumes(
        &sandbox,
        "list",
        &[&through_proxy[..], &["--container", other.id()]].concat(),
    )
    .await;
    let by_id = [&through_proxy[..], &["--volume", plugged.id()]].concat();
    let inspected = query_volumes(&sandbox, "inspect", &by_id).await;
    let by_path = [&through_proxy[..], &at(&container, "/dev/xvda")].concat();
    assert_eq!(query_volumes(&sandbox, "inspect", &by_path).await, inspected);

    // All values that the hot-plug reported, unchanged, and more.
    let listed_first = listed.iter().find(|listed| listed["id"] == plugged.id()).unwrap();
    for (key, value) in plugged.volume.as_object().unwrap() {
        assert_eq!(&listed_first[key], value, "{key}");
    }
    // `inspect` reports the same, and the holders.
    let mut expected = listed_first.clone();
    expected["guest"]["holders"] = Value::Array(Vec::new());
    assert_eq!((&inspected[0], inspected.len()), (&expected, 1));
    assert_eq!(listed_first["state"], "attached");
    let guest = &listed_first["guest"];
    for fact in ["disk_present", "container_running", "node_present", "allowed"] {
        assert_eq!(guest[fact], true, "{fact}");
    }
    assert_eq!((&guest["size"], &guest["read_only"]), (&Value::from(2 * MIB), &Value::from(false)));
    assert_eq!((listed.len(), of_other.len()), (2, 1));
    assert_eq!(
        (&of_other[0]["size"], &of_other[0]["guest"]["read_only"]),
        (&Value::from(4 * MIB), &true.into())
    );

    let commands = proxy.commands();
    let is_query = |name: &String| {
        name.contains("query-")
            || ["qmp_capabilities", "qom-list", "qom-get"].contains(&name.as_str())
    };
    assert!(commands.len() > 8 && commands.iter().all(is_query), "{commands:?}");
    before.assert_unchanged(&sandbox, &containers).await;

    // The container removes its node. That is detected, and the incomplete attachment is unplugged.
    container.exec(&["rm", "/dev/xvda"]).await;
    let listed = query_volumes(&sandbox, "inspect", &["--volume", plugged.id()]).await;
    assert_eq!(
        (&listed[0]["state"], &listed[0]["guest"]["node_present"]),
        (&"incomplete".into(), &false.into())
    );
    unplug(&sandbox, &["--volume", plugged.id()]).await;
    assert!(claim_is_free(&volume));
}

#[rstest]
#[tokio::test]
async fn without_an_agent_the_volumes_of_qemu_are_listed_and_nothing_is_unplugged(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(2 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let no_agent = ["--agent", "unix:///nonexistent/agent.sock"];
    let finished = verb(sandbox.ecr_runtime(), &sandbox, "list", &no_agent).run().await;
    let json = finished.json();
    assert_eq!(
        (finished.status, &json["guest_error"]["reason"]),
        (15, &"agent_unreachable".into()),
        "{json}"
    );
    assert_eq!(state_of(&json["volumes"][0]), "unknown: guest_unreachable");
    assert_eq!(
        (&json["volumes"][0]["id"], &json["volumes"][0]["guest"]),
        (&plugged.id().into(), &Value::Null)
    );
    let more = [&no_agent[..], &["--volume", plugged.id()]].concat();
    let finished = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &more).run().await;
    finished.failed_with(14);
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}
