//! `--shared` on real VMs: one disk, a device node for each attachment, and the disk is removed
//! with the last attachment.

use rstest::rstest;
use serde_json::Value;
use vm_harness::{
    Cgroup, Container, ContainerOptions, DeviceFilter, Machine, Sandbox, Snapshot, Volume,
    random_bytes,
};

use super::{
    MIB, boot,
    host_failures::claim_is_free,
    hot_unplug::{at, unplug, verb},
    repair::{repair, state_of},
    sandbox,
};

async fn share(sandbox: &Sandbox, container: &Container, volume: &Volume, path: &str) -> Value {
    let command = sandbox.hot_plug_command(container, &[(volume, path)]).args(["--shared"]);
    let finished = command.run().await;
    finished.succeeded(sandbox.guest());
    finished.json()
}

/// Returns container, device path and state of each attachment, and whether it is shared.
async fn listed(sandbox: &Sandbox) -> Vec<(String, String, String, bool)> {
    let listed = verb(sandbox.ecr_runtime(), sandbox, "list", &[]).run().await.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let volumes = listed["volumes"].as_array().unwrap().iter();
    volumes
        .map(|listed| {
            let (container, path) = (text(&listed["container"]), text(&listed["device_path"]));
            (container, path, state_of(listed), listed["shared"] == true)
        })
        .collect()
}

#[rstest]
#[tokio::test]
async fn two_containers_share_one_disk(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
    #[values(true, false)] first_is_unplugged_first: bool,
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let (first, second) = (sandbox.start_container().await, sandbox.start_container().await);
    let before = Snapshot::of(&sandbox, &[&first, &second]).await;
    let volume = Volume::loop_device(2 * MIB);
    sandbox.hot_plug(&first, &volume, "/dev/xvda").await;
    let with_one = Snapshot::of(&sandbox, &[&first, &second]).await;
    let second_attachment = share(&sandbox, &second, &volume, "/dev/data").await;
    assert_eq!(
        (&second_attachment["result"], &second_attachment["volumes"][0]["shared"]),
        (&"attached".into(), &true.into())
    );
    let with_two = Snapshot::of(&sandbox, &[&first, &second]).await;
    assert_eq!(with_two.devices, with_one.devices, "one disk");
    let (reservations, of_the_disk): (Vec<_>, Vec<_>) =
        with_two.nodes.iter().cloned().partition(|node| node.contains("null-co"));
    assert_eq!(
        (reservations.len(), &of_the_disk),
        (1, &with_one.nodes),
        "and the reservation of the second path"
    );
    assert_eq!(with_two.scsi, with_one.scsi, "one disk");

    let fresh = random_bytes(65536);
    first.write("/dev/xvda", 0, &fresh).await;
    assert_eq!(second.read("/dev/data", 0..65536).await, fresh);
    let attachments = listed(&sandbox).await;
    assert!(
        attachments.len() == 2
            && attachments.iter().all(|(.., state, shared)| state == "attached" && *shared),
        "{attachments:?}"
    );
    assert_eq!(share(&sandbox, &second, &volume, "/dev/data").await["result"], "unchanged");
    assert_eq!(repair(&sandbox, 0, &[]).await["result"], "unchanged");

    let ((removed, its_path), (stays, path)) = if first_is_unplugged_first {
        ((&first, "/dev/xvda"), (&second, "/dev/data"))
    } else {
        ((&second, "/dev/data"), (&first, "/dev/xvda"))
    };
    unplug(&sandbox, &at(removed, its_path)).await;
    assert!(!claim_is_free(&volume));
    let attachments = listed(&sandbox).await;
    assert_eq!(
        attachments,
        [(stays.id().to_owned(), path.to_owned(), "attached".to_owned(), false)]
    );
    removed.exec(&["test", "!", "-e", its_path]).await;
    let fresh = random_bytes(65536);
    stays.write(path, MIB, &fresh).await;
    assert_eq!(stays.read(path, MIB..MIB + 65536).await, fresh);
    unplug(&sandbox, &at(stays, path)).await;
    assert!(claim_is_free(&volume));
    assert_eq!(volume.bytes(MIB..MIB + 65536), fresh);
    if cgroup == Cgroup::V2 {
        before.assert_unchanged(&sandbox, &[&first, &second]).await;
    }
}

#[rstest]
#[tokio::test]
async fn second_path_in_one_container_keeps_its_device_right(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let options =
        ContainerOptions { device_filter: DeviceFilter::Bpf, ..ContainerOptions::default() };
    let container = match cgroup {
        Cgroup::V1 => sandbox.start_container().await,
        Cgroup::V2 => sandbox.start_container_with(&options).await,
    };
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    share(&sandbox, &container, &volume, "/dev/xvdb").await;
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    assert_eq!(container.read("/dev/xvdb", 0..65536).await, volume.bytes(0..65536));
    unplug(&sandbox, &at(&container, "/dev/xvdb")).await;
    let own = |snapshot: &Snapshot| {
        let list = &snapshot.device_filters[container.id()];
        list.iter().filter(|entry| cgroup == Cgroup::V2 || entry.starts_with("b 8:")).count()
    };
    // On v1 those of the pod and of the container.
    assert_eq!(own(&Snapshot::of(&sandbox, &[&container]).await), own(&before));
    assert!(claim_is_free(&volume));
}

#[rstest]
#[tokio::test]
async fn volume_that_is_not_shared_is_a_conflict_that_names_the_first_attachment(
    #[future(awt)] sandbox: Sandbox,
) {
    let (first, second) = (sandbox.start_container().await, sandbox.start_container().await);
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&first, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&first, &second]).await;
    let (_, message) =
        sandbox.hot_plug_command(&second, &[(&volume, "/dev/xvda")]).run().await.failed_with(4);
    assert!(message.contains(first.id()) && message.contains("/dev/xvda"), "{message}");
    let read_only = sandbox
        .hot_plug_command(&second, &[(&volume, "/dev/xvda")])
        .args(["--shared", "--read-only"]);
    let (reason, message) = read_only.run().await.failed_with(4);
    assert!(reason == "other_options" && message.contains("--read-only"), "{message}");
    // A file at the device path is reported before anything is changed.
    second.exec(&["sh", "-c", "echo mine > /dev/taken"]).await;
    let taken = sandbox.hot_plug_command(&second, &[(&volume, "/dev/taken")]).args(["--shared"]);
    assert_eq!(taken.run().await.failed_with(4).0, "path_taken");
    second.exec(&["rm", "/dev/taken"]).await;
    before.assert_unchanged(&sandbox, &[&first, &second]).await;
    // Two sandboxes never share a volume.
    let other = boot(&Machine::default()).await;
    let elsewhere = other.start_container().await;
    let refused = other
        .hot_plug_command(&elsewhere, &[(&volume, "/dev/xvda")])
        .args(["--shared"])
        .run()
        .await;
    let (reason, message) = refused.failed_with(6);
    assert_eq!(reason, "source_held");
    assert!(
        message.contains(&format!("sandbox-{}", sandbox.id())),
        "it names the sandbox: {message}"
    );
}

#[rstest]
#[tokio::test]
async fn only_the_attachment_of_a_container_that_is_gone_is_stale(
    #[future(awt)] sandbox: Sandbox,
    #[values(true, false)] first_is_gone: bool,
) {
    let (first, second) = (sandbox.start_container().await, sandbox.start_container().await);
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&first, &volume, "/dev/xvda").await;
    share(&sandbox, &second, &volume, "/dev/xvda").await;
    let (gone, stays) = if first_is_gone { (&first, &second) } else { (&second, &first) };
    gone.kill().await.unwrap();
    for (container, _, state, shared) in listed(&sandbox).await {
        let expected = if container == gone.id() { "stale: container_gone" } else { "attached" };
        assert_eq!((state.as_str(), shared), (expected, true));
    }
    let repaired = repair(&sandbox, 0, &[]).await;
    for volume in repaired["volumes"].as_array().unwrap() {
        let expected = if volume["container"] == gone.id() { "rolled_back" } else { "kept" };
        assert_eq!(volume["action"], expected, "{repaired}");
    }
    assert_eq!(stays.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    unplug(&sandbox, &at(stays, "/dev/xvda")).await;
    assert!(claim_is_free(&volume));
}

#[rstest]
#[tokio::test]
async fn killed_further_attachment_is_completed_or_rolled_back(
    #[future(awt)] sandbox: Sandbox,
    #[values(true, false)] by_repair: bool,
) {
    let (first, second) = (sandbox.start_container().await, sandbox.start_container().await);
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&first, &volume, "/dev/xvda").await;
    let with_one = Snapshot::of(&sandbox, &[&first, &second]).await;
    for (point, completes) in [
        ("after-record-attachment", false),
        ("after-reserve-path", false),
        ("after-prepared", false),
        ("after-record", true),
        ("after-attach", true),
        ("after-commit", true),
    ] {
        let killed = sandbox.ecr_runtime_with_faults(&format!("{point}=kill"));
        let killed = killed
            .hot_plug(sandbox.id(), second.id(), &[(&volume, "/dev/xvda")])
            .args(["--shared"]);
        assert_eq!(killed.run().await.status, 128 + 9, "{point}");
        sandbox.until_plugin_is_idle().await.unwrap();
        if by_repair {
            repair(&sandbox, 0, &[]).await;
        } else {
            share(&sandbox, &second, &volume, "/dev/xvda").await;
        }
        let attached = completes || !by_repair;
        let attachments = listed(&sandbox).await;
        assert_eq!(attachments.len(), if attached { 2 } else { 1 }, "{point}: {attachments:?}");
        assert!(
            attachments.iter().all(|(.., state, _)| state == "attached"),
            "{point}: {attachments:?}"
        );
        if attached {
            assert_eq!(second.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536), "{point}");
            unplug(&sandbox, &at(&second, "/dev/xvda")).await;
        }
        with_one.assert_unchanged(&sandbox, &[&first, &second]).await;
        assert_eq!(first.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536), "{point}");
    }
}
