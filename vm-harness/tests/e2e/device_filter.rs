//! Device filters: the container of an attachment may use the volume with the access that was
//! requested, and no other container may use it.

use block_volume_api::block_volume::AttachRequest;
use rstest::rstest;
use serde_json::Value;
use vm_harness::{
    Cgroup, Container, ContainerOptions, DeviceFilter, LoopOptions, Machine, QmpProxy, Sandbox,
    Snapshot, Volume,
};

use super::{MIB, boot, sandbox, sandbox_with_faults, set_guest_faults};

fn filtered() -> ContainerOptions {
    ContainerOptions { device_filter: DeviceFilter::Bpf, ..ContainerOptions::default() }
}

fn cgroup(container: &Container) -> String {
    format!("/pod/{}", container.id())
}

/// Creates a device node in the container, and returns whether the container can read or write
/// through it. The device filter decides that.
async fn can(container: &Container, number: &str, write: bool) -> bool {
    let (major, minor) = number.split_once(':').unwrap();
    container
        .exec(&["sh", "-c", &format!("rm -f /dev/own; mknod /dev/own b {major} {minor}")])
        .await;
    let command: &[&str] = match write {
        false => &["dd", "if=/dev/own", "of=/dev/null", "count=1"],
        true => &["dd", "if=/dev/zero", "of=/dev/own", "count=0", "conv=notrunc"],
    };
    let output = container.try_exec(command, b"").await.unwrap();
    let error = output.error_text();
    assert!(output.status == 0 || error.contains("Operation not permitted"), "{error}");
    output.status == 0
}

/// Returns what `inspect` reports of the container's only volume: its state, and whether the filter
/// allows it.
async fn inspect(sandbox: &Sandbox, container: &Container, path: &str) -> (String, bool) {
    let arguments = ["block-volume", "inspect", "--output", "json", "--sandbox", sandbox.id()];
    let which = ["--container", container.id(), "--device-path", path];
    let finished = sandbox.ecr_runtime().args(arguments).args(which).run().await;
    let volume = &finished.json()["volumes"][0];
    (volume["state"].as_str().unwrap().to_owned(), volume["guest"]["allowed"] == Value::Bool(true))
}

async fn hot_unplug(sandbox: &Sandbox, container: &Container, path: &str) {
    let arguments = ["block-volume", "hot-unplug", "--output", "json", "--sandbox", sandbox.id()];
    let which = ["--container", container.id(), "--device-path", path];
    sandbox.ecr_runtime().args(arguments).args(which).run().await.succeeded(sandbox.guest());
}

#[rstest]
#[tokio::test]
async fn container_can_use_its_volume_and_its_sibling_cannot(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&filtered()).await;
    let sibling = sandbox.start_container_with(&filtered()).await;
    let both = [&container, &sibling];
    let before = Snapshot::of(&sandbox, &both).await;
    let volume = Volume::loop_device(4 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(plugged.text("device_filter"), "bpf");
    assert_eq!(container.read("/dev/xvda", 0..4 * MIB).await, volume.bytes(0..4 * MIB));
    let fresh = vm_harness::random_bytes(65536);
    container.write("/dev/xvda", MIB, &fresh).await;
    let number = plugged.device_number().to_owned();
    assert!(!can(&sibling, &number, false).await && !can(&sibling, &number, true).await);
    container.exec(&["sh", "-c", "head -c 16 /dev/zero >/dev/null; rm -f /dev/own"]).await;
    sibling.exec(&["rm", "/dev/own"]).await;
    assert_eq!(inspect(&sandbox, &container, "/dev/xvda").await, ("attached".to_owned(), true));

    hot_unplug(&sandbox, &container, "/dev/xvda").await;
    before.assert_unchanged(&sandbox, &both).await;
    assert_eq!(volume.bytes(MIB..MIB + 65536), fresh, "what the container wrote is on the volume");

    // The next disk has the same device number, and belongs to the sibling.
    let next = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&sibling, &next, "/dev/xvda").await;
    assert_eq!(plugged.device_number(), number);
    assert!(
        !can(&container, &number, false).await,
        "the first container lost its right with its volume"
    );
    assert!(can(&sibling, &number, true).await);
}

#[rstest]
#[tokio::test]
async fn hundreds_of_attachments_leave_one_program_and_never_deny_other_devices(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container_with(&filtered()).await;
    let before = sandbox.observer().programs(&cgroup(&container)).await.unwrap();
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let script =
        "n=0; while [ ! -e /dev/stop ]; do : </dev/null || exit 3; n=$((n+1)); done; echo $n";
    let opener = container.clone();
    // The guest has one processor: the loop gets what the attachments leave of it.
    sandbox.observer().write("/sys/fs/cgroup/pod/cpu.weight", "1").await.unwrap();
    let opener =
        tokio::spawn(async move { opener.try_exec(&["sh", "-c", script], b"").await.unwrap() });
    let service = sandbox.block_volume_service().await.unwrap();
    let attach = AttachRequest {
        attachments: vec![plugged.attachment()],
        timeout_ms: 10_000 * u64::from(sandbox.guest().time_scale()),
        ..AttachRequest::default()
    };
    for flip in 0..300 {
        let detached = sandbox.detach(&plugged).await.unwrap();
        assert!(detached.failure.is_none(), "{flip}: {detached}");
        // The disk is deleted in the guest alone: the next scan finds it again.
        let attached = service.attach(sandbox.agent().context(), &attach).await.unwrap();
        assert!(attached.failure.is_none(), "{flip}: {attached}");
        if flip % 20 == 0 {
            assert_eq!(sandbox.observer().programs(&cgroup(&container)).await.unwrap().len(), 1);
        }
    }
    assert_eq!(container.read("/dev/xvda", 0..MIB).await, volume.bytes(0..MIB));
    container.exec(&["touch", "/dev/stop"]).await;
    let opened = opener.await.unwrap();
    assert_eq!(opened.status, 0, "/dev/null was refused: {}", opened.error_text());
    assert!(
        opened.text().trim().parse::<u64>().unwrap() > 300,
        "the loop must run during the attachments"
    );
    sandbox.detach(&plugged).await.unwrap();
    let after = sandbox.observer().programs(&cgroup(&container)).await.unwrap();
    assert_eq!(after.len(), 1);
    assert_eq!(
        after[0].instructions, before[0].instructions,
        "the runtime's own program is restored"
    );
    assert_ne!(after[0].id, before[0].id);
}

#[rstest]
#[tokio::test]
async fn read_only_volume_cannot_be_opened_for_writing_through_another_node(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let container = sandbox.start_container_with(&filtered()).await;
    let volume = Volume::loop_device_with(
        4 * MIB,
        LoopOptions { read_only: true, ..LoopOptions::default() },
    );
    let command =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--read-only"]);
    let plugged = command.run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    assert!(can(&container, plugged.device_number(), false).await);
    assert!(
        !can(&container, plugged.device_number(), true).await,
        "the filter itself refuses to write"
    );
}

#[rstest]
#[tokio::test]
async fn right_that_an_update_removed_is_detected_and_restored(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let container = sandbox.start_container_with(&filtered()).await;
    let sibling = sandbox.start_container_with(&filtered()).await;
    let volume = Volume::loop_device(4 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    container.update(DeviceFilter::Bpf).await.unwrap();
    let error = container.exec_fails(&["dd", "if=/dev/xvda", "of=/dev/null", "count=1"]).await;
    assert!(error.contains("Operation not permitted"), "{error}");
    assert_eq!(inspect(&sandbox, &container, "/dev/xvda").await, ("incomplete".to_owned(), false));

    let again = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!((again.result.as_str(), again.id()), ("attached", plugged.id()));
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    assert_eq!(inspect(&sandbox, &container, "/dev/xvda").await, ("attached".to_owned(), true));
    let third = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(third.result, "unchanged");

    // An update without device rules keeps the right, a cgroup below the container's own has it,
    // too, and `repair` restores it.
    container.update(DeviceFilter::None).await.unwrap();
    let mount = if cgroup == Cgroup::V1 { "/sys/fs/cgroup/devices" } else { "/sys/fs/cgroup" };
    let group = format!("{mount}/pod/{}", container.id());
    let reader = container.clone();
    // The shell waits without a child process, whose PID would be gone before it is moved.
    let script = "mkfifo /dev/go; read go < /dev/go; dd if=/dev/xvda of=/dev/null count=1";
    let reader =
        tokio::spawn(async move { reader.try_exec(&["sh", "-c", script], b"").await.unwrap() });
    container.exec(&["sh", "-c", "until test -p /dev/go; do sleep 0.05; done"]).await;
    let all = |from, to| {
        format!("for pid in $(cat {from}cgroup.procs); do echo $pid > {to}cgroup.procs; done")
    };
    sandbox
        .observer()
        .shell(&format!("cd {group} && mkdir nested && {}", all("", "nested/")))
        .await;
    container.exec(&["sh", "-c", "echo > /dev/go"]).await;
    let nested = reader.await.unwrap();
    assert_eq!(nested.status, 0, "{}", nested.error_text());
    // On v1 the allow-list cannot be replaced while there is a cgroup below.
    sandbox
        .observer()
        .shell(&format!("cd {group} && {} && rmdir nested", all("nested/", "")))
        .await;
    container.update(DeviceFilter::Bpf).await.unwrap();
    let arguments = ["block-volume", "repair", "--output", "json", "--sandbox", sandbox.id()];
    let repaired = sandbox.ecr_runtime().args(arguments).run().await.json()["volumes"][0].clone();
    assert_eq!(
        (&repaired["action"], &repaired["state_after"]),
        (&"completed".into(), &"attached".into()),
        "{repaired}"
    );
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    assert!(!can(&sibling, plugged.device_number(), false).await);
}

#[rstest]
#[tokio::test]
async fn volumes_of_a_batch_can_be_unplugged_one_by_one(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&filtered()).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volumes: Vec<Volume> = (0..4).map(|_| Volume::image(MIB)).collect();
    let paths = ["/dev/xvda", "/dev/xvdb", "/dev/xvdc", "/dev/xvdd"];
    let pairs: Vec<(&Volume, &str)> = volumes.iter().zip(paths).collect();
    sandbox.hot_plug_command(&container, &pairs).run().await.succeeded(sandbox.guest());
    let mut left = pairs;
    for gone in [1, 0, 1, 0] {
        for (volume, path) in &left {
            assert_eq!(container.read(path, 0..MIB).await, volume.bytes(0..MIB), "{path}");
        }
        hot_unplug(&sandbox, &container, left.remove(gone).1).await;
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn failure_after_the_filter_step_restores_the_program(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container_with(&filtered()).await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volumes = [Volume::image(MIB), Volume::image(MIB)];
    set_guest_faults(&sandbox, "attach-after-filter=error\n").await;
    let pairs = [(&volumes[0], "/dev/xvda"), (&volumes[1], "/dev/xvdb")];
    sandbox.hot_plug_command(&container, &pairs).run().await.failed_with(1);
    before.assert_unchanged(&sandbox, &[&container]).await;
    set_guest_faults(&sandbox, "").await;
    sandbox.hot_plug_command(&container, &pairs).run().await.succeeded(sandbox.guest());
    assert_eq!(container.read("/dev/xvdb", 0..MIB).await, volumes[1].bytes(0..MIB));
}

#[rstest]
#[tokio::test]
async fn right_from_the_specification_is_kept(#[future(awt)] sandbox: Sandbox) {
    // The first disk of the guest.
    let options = ContainerOptions { block_devices: vec![(8, 0)], ..filtered() };
    let container = sandbox.start_container_with(&options).await;
    let before = sandbox.observer().programs(&cgroup(&container)).await.unwrap();
    let (volume, next) = (Volume::image(MIB), Volume::image(MIB));
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(plugged.device_number(), "8:0");
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    assert_eq!(
        sandbox.observer().programs(&cgroup(&container)).await.unwrap(),
        before,
        "no change was needed"
    );
    hot_unplug(&sandbox, &container, "/dev/xvda").await;
    let sibling = sandbox.start_container_with(&filtered()).await;
    sandbox.hot_plug(&sibling, &next, "/dev/xvda").await;
    assert!(can(&container, "8:0", true).await, "its own specification allows it");
}

#[rstest]
#[tokio::test]
async fn right_that_replaces_a_lost_one_is_removed_with_the_volume(
    #[future(awt)] sandbox: Sandbox,
) {
    let options = ContainerOptions { block_devices: vec![(8, 0)], ..filtered() };
    let container = sandbox.start_container_with(&options).await;
    let sibling = sandbox.start_container_with(&filtered()).await;
    let (volume, next) = (Volume::image(MIB), Volume::image(MIB));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    // New rules without the disk: from the second call on, only the attachment allows it.
    container.update(DeviceFilter::Bpf).await.unwrap();
    assert_eq!(sandbox.hot_plug(&container, &volume, "/dev/xvda").await.result, "attached");
    assert!(can(&container, "8:0", true).await);
    hot_unplug(&sandbox, &container, "/dev/xvda").await;
    let plugged = sandbox.hot_plug(&sibling, &next, "/dev/xvda").await;
    assert_eq!(plugged.device_number(), "8:0");
    assert!(!can(&container, "8:0", false).await);
}

/// A program that denies every access: `r0 = 0; exit`.
const DENY_ALL: &str = "b7000000000000009500000000000000";

#[rstest]
#[tokio::test]
async fn filter_that_cannot_be_changed_safely_is_refused_before_there_is_a_disk(
    #[future(awt)] sandbox: Sandbox,
) {
    const HARDEN: &str = "/proc/sys/net/core/bpf_jit_harden";
    let container = sandbox.start_container_with(&filtered()).await;
    let volume = Volume::image(MIB);
    let refused = async |container: &Container, expected: &str| {
        let before = Snapshot::of(&sandbox, &[container]).await;
        let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
        let socket = proxy.path();
        let command = sandbox.hot_plug_command(container, &[(&volume, "/dev/xvda")]);
        let finished = command.args(["--qmp", socket.to_str().unwrap()]).run().await;
        let (_, message) = finished.failed_with(10);
        let commands = proxy.commands();
        let has_disk = commands.iter().any(|command| command == "device_add");
        assert!(!has_disk, "the guest is asked before it gets a disk: {commands:?}");
        assert!(message.contains(expected), "{message}");
        before.assert_unchanged(&sandbox, &[container]).await;
    };
    sandbox.observer().write(HARDEN, "2").await.unwrap();
    refused(&container, "net.core.bpf_jit_harden").await;
    let blinded = sandbox.start_container_with(&filtered()).await;
    sandbox.observer().write(HARDEN, "1").await.unwrap();
    refused(&blinded, "net.core.bpf_jit_harden").await;
    // The program of the other container can be read now, and so can the one that replaces it.
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    sandbox.observer().write(HARDEN, "2").await.unwrap();
    assert_eq!(inspect(&sandbox, &container, "/dev/xvda").await, ("attached".to_owned(), true));
    hot_unplug(&sandbox, &container, "/dev/xvda").await;
    sandbox.observer().write(HARDEN, "0").await.unwrap();

    let third = sandbox.start_container_with(&filtered()).await;
    let attach = guest_observer::Request::AttachProgram {
        cgroup: "/pod".to_owned(),
        instructions: DENY_ALL.to_owned(),
    };
    sandbox.observer().ask(&attach).await.unwrap();
    let error =
        sandbox.hot_plug_command(&third, &[(&volume, "/dev/xvda")]).run().await.failed_with(10).1;
    assert!(error.contains("of cgroup /pod refuses disks"), "{error}");
}
