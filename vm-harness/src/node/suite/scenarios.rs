//! What is proved with a workload, whoever made its sandbox.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use serde_json::Value;

use super::{
    containerd::{self, scaled},
    journal,
    process::{has_open, qemu_of, shim_of},
    program::{ecr_runtime, ecr_runtime_succeeds, run, until},
    workload::{CONTAINER, Workload},
};
use crate::{Engine, Finished, Volume};

/// The volume in the container.
const DEVICE: &str = "/dev/xvda";
const SIZE: u64 = 4 << 20;
/// Where the two runtimes have the directory of a sandbox.
const DIRECTORIES: [&str; 2] = ["/run/vc/vm", "/run/kata"];
/// How long the end of a sandbox may take with KVM.
const END: Duration = Duration::from_secs(30);

/// Makes a volume.
pub(super) fn volume() -> Volume {
    Volume::loop_device(SIZE)
}

/// The sandbox has the wrapper's monitor and the kernel's own vhost-vsock.
pub(super) async fn sandbox_is_ready(workload: &Workload) {
    let sandbox = workload.pod.id();
    let qemu = qemu_of(sandbox).expect("a QEMU with the wrapper's monitor runs for the sandbox");
    assert!(has_open(qemu, "/dev/vhost-vsock"), "QEMU {qemu} has not opened /dev/vhost-vsock");
    let sockets = DIRECTORIES.map(|root| format!("{root}/{sandbox}/extra-monitor.sock"));
    let mut found = sockets.iter().filter_map(|socket| fs::metadata(socket).ok());
    let socket = found.next().unwrap_or_else(|| panic!("none of {sockets:?} exists"));
    assert_eq!(socket.mode() & 0o777, 0o600, "the mode of the monitor's socket");
}

/// `check` finds no problem in the sandbox.
pub(super) async fn check_passes(workload: &Workload) {
    ecr_runtime_succeeds(&["check", "--sandbox", workload.pod.id()]).await;
}

/// Plugged by the pod's name, a volume has the same bytes on both sides, whichever wrote them.
pub(super) async fn plug(workload: &Workload, volume: &Volume) {
    let options = ["--block-volume", volume.name(), "--device-path", DEVICE];
    let plugged = workload.volume("hot-plug", &options).await;
    assert_eq!(plugged["result"], "attached", "{plugged}");
    assert_eq!(plugged["volumes"][0]["container"], workload.container.id(), "{plugged}");
    assert_eq!(checksum(workload).await, volume.checksum());
}

/// `list --all` and `check --all` find the sandbox with the pod's name.
pub(super) async fn listed_by_name(workload: &Workload) {
    let listed = ecr_runtime_succeeds(&["block-volume", "list", "--all"]).await;
    let sandboxes = listed["sandboxes"].as_array().cloned().unwrap_or_default();
    let its = sandboxes.iter().find(|sandbox| sandbox["id"] == workload.pod.id());
    let its = its.unwrap_or_else(|| panic!("the sandbox is not listed: {listed}"));
    let name = |field: &str| its["pod"][field].as_str().unwrap_or_default().to_owned();
    assert_eq!(format!("{}/{}", name("namespace"), name("name")), workload.name, "{listed}");
    ecr_runtime_succeeds(&["check", "--all"]).await;
}

/// What the container writes is on the volume.
pub(super) async fn write(workload: &Workload, volume: &Volume) {
    let before = volume.checksum();
    let of = format!("of={DEVICE}");
    workload
        .busybox(&["dd", "if=/dev/urandom", &of, "bs=64k", "count=16", "conv=notrunc,fsync"])
        .await;
    assert_ne!(volume.checksum(), before, "nothing was written to {}", volume.name());
    assert_eq!(checksum(workload).await, volume.checksum());
}

async fn checksum(workload: &Workload) -> String {
    let printed = workload.busybox(&["sha256sum", DEVICE]).await;
    printed.split_whitespace().next().unwrap_or_default().to_owned()
}

/// The journal has a record of the beginning and one of the end, with names and IDs.
pub(super) async fn audited(workload: &Workload, volume: &Volume) {
    let records = journal::audit_records().await;
    let of = |phase: &str, text: &str| {
        let is = |record: &&Value| {
            record["phase"] == phase && record.to_string().contains(volume.name())
        };
        records.iter().filter(is).any(|record| record.to_string().contains(text))
    };
    assert!(of("begin", &workload.name), "no record of the beginning: {records:?}");
    assert!(of("end", workload.container.id()), "no record of the end: {records:?}");
}

/// Unplugged by the pod's name, it is the host's again.
pub(super) async fn unplug(workload: &Workload, volume: &Volume) {
    let unplugged = workload.volume("hot-unplug", &["--device-path", DEVICE]).await;
    assert_eq!(unplugged["result"], "detached", "{unplugged}");
    volume.check_claimable().unwrap_or_else(|error| panic!("{}: {error}", volume.name()));
}

/// A plugged volume stays when containerd is restarted, and all commands still work.
pub(super) async fn restart_containerd(workload: &mut Workload, volume: &Volume) -> Engine {
    plug(workload, volume).await;
    let engine = containerd::restart().await;
    workload.reconnect(&engine);
    let listed = workload.list().await;
    assert_eq!(states(&listed), ["attached"], "{}{}", listed.stdout, listed.stderr);
    write(workload, volume).await;
    unplug(workload, volume).await;
    engine
}

/// A container that is stopped while it has a volume leaves it stale; `repair` frees it.
pub(super) async fn stop_container(workload: &mut Workload, volume: &Volume) {
    plug(workload, volume).await;
    let removed = workload.container.remove().await;
    removed.unwrap_or_else(|error| panic!("the container is not removed: {}", error.chain()));
    let listed = workload.list().await;
    assert_eq!(states(&listed), ["stale"], "{}{}", listed.stdout, listed.stderr);
    ecr_runtime_succeeds(&["block-volume", "repair", "--sandbox", workload.pod.id()]).await;
    volume.check_claimable().unwrap_or_else(|error| panic!("{}: {error}", volume.name()));
    let container = workload.pod.start_container(CONTAINER).await;
    workload.container = container.unwrap_or_else(|error| panic!("{}", error.chain()));
}

/// An agent without the plugin: the hot-plug says so, and neither QEMU nor the host keeps anything
/// of it.
pub(super) async fn plug_is_refused(workload: &Workload, volume: &Volume) {
    let command = ["block-volume", "hot-plug", "--pod", &workload.name, "--container", CONTAINER];
    let options = ["--block-volume", volume.name(), "--device-path", DEVICE];
    let (reason, message) =
        ecr_runtime(&[command.as_slice(), &options].concat()).await.failed_with(10);
    assert_eq!(reason, "no_plugin", "{message}");
    volume.check_claimable().unwrap_or_else(|error| panic!("{}: {error}", volume.name()));
    workload.busybox(&["true"]).await;
}

/// A pod that is stopped while it has a volume frees it.
pub(super) async fn stop_pod(workload: Workload, volume: &Volume) {
    plug(&workload, volume).await;
    stop(workload, volume).await;
}

/// Stops a pod, and waits until nothing of it is left.
pub(super) async fn stop(workload: Workload, volume: &Volume) {
    let sandbox = workload.pod.id().to_owned();
    workload.stop().await;
    sandbox_ends(&sandbox, volume).await;
}

/// A shim that is killed while its pod has a volume: containerd ends the sandbox.
pub(super) async fn kill_shim(workload: Workload, volume: &Volume) {
    plug(&workload, volume).await;
    let sandbox = workload.pod.id().to_owned();
    let shim = shim_of(&sandbox).expect("the pod has a shim").to_string();
    run(&["kill", "-KILL", &shim]).await;
    sandbox_ends(&sandbox, volume).await;
    // An event tells containerd of the container's end, and it removes none that it lists as
    // running.
    let has_ended = async || {
        let running = workload.container.is_running().await;
        !running.unwrap_or_else(|error| panic!("no list: {}", error.chain()))
    };
    until("the end of the container in containerd's list", scaled(END), has_ended).await;
    workload.stop().await;
}

/// Waits until a sandbox and its claim on the volume are gone.
async fn sandbox_ends(sandbox: &str, volume: &Volume) {
    until("the end of QEMU", scaled(END), async || qemu_of(sandbox).is_none()).await;
    let is_free = async || volume.check_claimable().is_ok();
    until("the end of QEMU's claim on the volume", scaled(END), is_free).await;
    let gone =
        async || DIRECTORIES.iter().all(|root| fs::metadata(format!("{root}/{sandbox}")).is_err());
    until("the end of the sandbox's directory", scaled(END), gone).await;
}

fn states(listed: &Finished) -> Vec<String> {
    let json = listed.json();
    let volumes = json["volumes"].as_array().cloned().unwrap_or_default();
    let state = |volume: &Value| volume["state"].as_str().unwrap_or_default().to_owned();
    volumes.iter().map(state).collect()
}
