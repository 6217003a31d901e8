//! Pods by name: a real container engine says which sandbox and which container a name means, and a
//! sandbox of the harness, which has that ID, gets the volume.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use vm_harness::{
    Container, Containerd, EcrRuntime, EngineTranscript, Environment, Finished, Machine, Pod,
    PodContainer, PodOptions, ProcessStat, Sandbox, Snapshot, Volume,
};

use super::MIB;

/// containerd 1.6, the oldest one with version 1 of the CRI.
const SUITE: &str = "bookworm";
/// How long a command may take with KVM.
const LIMIT: Duration = Duration::from_secs(60);
/// A pod and its sandbox and container in `crio.textproto`.
const CRIO: &str = include_str!("pods/crio.textproto");
const CRIO_SANDBOX: &str = "5c871fdc570dd8c777f089905cd3080c3a6b1569822db02402d9ab96f02bc209";
const CRIO_CONTAINER: &str = "fc81792d3a26d8aab6b806a6e9971b37d0e22f3d64d2f583f742ccf56996a092";

async fn containerd(suite: &str) -> Containerd {
    Containerd::start(&Environment::from_variables(), suite)
        .await
        .unwrap_or_else(|error| panic!("no containerd: {}", error.chain()))
}

async fn run_pod(containerd: &Containerd, options: &PodOptions) -> Pod {
    containerd.run_pod(options).await.unwrap_or_else(|error| panic!("no pod: {}", error.chain()))
}

async fn start_container(pod: &Pod, name: &str, attempt: u32) -> PodContainer {
    let container = pod.create_container(name, attempt).await.unwrap();
    container.start().await.unwrap();
    container
}

/// A sandbox of the harness with the ID of a pod's.
async fn boot_as(id: &str) -> Sandbox {
    Sandbox::boot_as(id, &Machine::default())
        .await
        .unwrap_or_else(|error| panic!("no sandbox: {}", error.chain()))
}

/// A call that asks the engine at `cri`. A busy host must not fail it: with more time for the whole
/// there is more for each step, the 2 seconds for QEMU's greeting included.
fn by_name(sandbox: &Sandbox, cri: &Path, verb: &str, names: &[&str]) -> EcrRuntime {
    let call = sandbox.ecr_runtime().args(["block-volume", verb, "--output", "json"]);
    call.args([Path::new("--cri"), cri]).args(["--timeout", "10m"]).args(names)
}

fn with_volume(call: EcrRuntime, volume: &Volume, path: &str) -> EcrRuntime {
    call.args(["--block-volume", volume.name(), "--device-path", path])
}

/// Plugs a volume by names, reads it in `container`, and unplugs it by names.
async fn plug_and_unplug(sandbox: &Sandbox, cri: &Path, container: &Container, names: &[&str]) {
    let before = Snapshot::of(sandbox, &[container]).await;
    let volume = Volume::image(MIB);
    let plug = with_volume(by_name(sandbox, cri, "hot-plug", names), &volume, "/dev/xvda");
    let plugged = plug.run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(plugged.result, "attached");
    assert_eq!(plugged.text("container"), container.id(), "{}", plugged.volume);
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let listed = by_name(sandbox, cri, "list", &names[..2]).run().await;
    let listed = listed.succeeded(sandbox.guest()).remove(0);
    assert_eq!((listed.id(), listed.text("container")), (plugged.id(), container.id()));
    assert_pods_are_listed(sandbox, cri, names[1]).await;
    let unplug = by_name(sandbox, cri, "hot-unplug", names).args(["--device-path", "/dev/xvda"]);
    unplug.run().await.succeeded(sandbox.guest());
    before.assert_unchanged(sandbox, &[container]).await;
}

/// `list --all` names the pod of the sandbox, and that and the container `app` of its volume.
async fn assert_pods_are_listed(sandbox: &Sandbox, cri: &Path, pod: &str) {
    let listed = by_name(sandbox, cri, "list", &["--all"]).run().await;
    assert_eq!(listed.status, 0, "{}{}", listed.stdout, listed.stderr);
    let json = listed.json();
    let (namespace, name) = pod.split_once('/').unwrap();
    let named = |view: &Value| view["namespace"] == namespace && view["name"] == name;
    let [its] = json["sandboxes"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert!(its["id"] == sandbox.id() && named(&its["pod"]), "{json}");
    let [volume] = json["volumes"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert!(named(&volume["pod"]) && volume["pod"]["container"] == "app", "{json}");
}

/// Why a hot-plug by these names fails, with which exit status.
async fn refused(sandbox: &Sandbox, cri: &Path, names: &[&str], status: i32) -> (String, String) {
    let call = by_name(sandbox, cri, "hot-plug", names);
    with_volume(call, &Volume::image(MIB), "/dev/xvda").run().await.failed_with(status)
}

/// What every engine must give: the pod and the container that run now, and why there are none.
pub(crate) async fn names_lead_to_what_runs_now(suite: &str, version: &str) {
    let containerd = containerd(suite).await;
    let found = containerd.version().await.unwrap();
    assert!(found.starts_with(version), "containerd of {suite} is {found}, not {version}");
    let cri = &containerd.socket();

    // The node was restarted: kubelet made a new sandbox for the pod.
    let db = PodOptions { runtime: "kata".to_owned(), ..PodOptions::named("shop", "db-0") };
    let old = run_pod(&containerd, &db).await;
    let old_app = old.start_container("app").await.unwrap();
    old.stop().await.unwrap();
    let db = run_pod(&containerd, &PodOptions { attempt: 1, ..db.clone() }).await;
    // The engine reserves a container's name by the pod and the attempt, as kubelet counts it.
    let app = start_container(&db, "app", 1).await;
    let log = start_container(&db, "log", 0).await;

    let sandbox = boot_as(db.id()).await;
    let guest_app = sandbox.start_container_as(app.id()).await;
    let _guest_log = sandbox.start_container_as(log.id()).await;
    assert_ne!(old_app.id(), app.id());
    let names = ["--pod", "shop/db-0", "--container", "app"];
    plug_and_unplug(&sandbox, cri, &guest_app, &names).await;

    // A container that ended and was started again has another ID.
    app.stop().await.unwrap();
    guest_app.kill().await.unwrap();
    let (reason, message) = refused(&sandbox, cri, &names, 3).await;
    assert_eq!(reason, "pod_container_not_running", "{message}");
    let app = start_container(&db, "app", 2).await;
    let guest_app = sandbox.start_container_as(app.id()).await;
    plug_and_unplug(&sandbox, cri, &guest_app, &names).await;

    // Names that nothing has.
    for (names, status, expected, named) in [
        (["--pod", "shop/db-0", "--container", "web"], 3, "pod_container_not_found", "app, log"),
        (["--pod", "db-0", "--container", "app"], 3, "pod_not_found", "shop/db-0"),
        (["--pod", "shop/db-1", "--container", "app"], 3, "pod_not_found", "shop/db-1"),
    ] {
        let (reason, message) = refused(&sandbox, cri, &names, status).await;
        assert_eq!(reason, expected, "{message}");
        assert!(message.contains(named), "{message}");
    }
    let (reason, message) = refused(&sandbox, cri, &names[..2], 2).await;
    assert_eq!(reason, "container_not_named", "{message}");

    // A pod that crun runs on this host: Kata has no sandbox of its ID.
    let web = run_pod(&containerd, &PodOptions::named("shop", "web")).await;
    web.start_container("web").await.unwrap();
    let names = ["--pod", "shop/web", "--container", "web"];
    let (reason, message) = refused(&sandbox, cri, &names, 10).await;
    assert_eq!(reason, "not_kata", "{message}");
    assert!(message.contains(web.id()), "{message}");

    // Two sandboxes of one pod that are both ready: nothing is chosen.
    let twin = PodOptions { attempt: 2, ..PodOptions::named("shop", "db-0") };
    let twin = run_pod(&containerd, &twin).await;
    let (reason, message) = refused(&sandbox, cri, &["--pod", "shop/db-0"], 2).await;
    assert_eq!(reason, "ambiguous_pod", "{message}");
    assert!(message.contains(twin.id()) && message.contains(db.id()), "{message}");
    twin.remove().await.unwrap();
    plug_and_unplug(&sandbox, cri, &guest_app, &["--pod", "shop/db-0", "--container", "app"]).await;
}

#[tokio::test]
async fn names_lead_to_what_runs_now_in_containerd_1_6() {
    names_lead_to_what_runs_now(SUITE, "1.6.").await;
}

#[tokio::test]
async fn names_of_cri_o_lead_to_what_runs_now() {
    let engine = EngineTranscript::serve(CRIO).unwrap_or_else(|e| panic!("{}", e.chain()));
    let cri = &engine.socket();
    let sandbox = boot_as(CRIO_SANDBOX).await;
    let container = sandbox.start_container_as(CRIO_CONTAINER).await;
    let names = ["--pod", "shop/db-0", "--container", "app"];
    plug_and_unplug(&sandbox, cri, &container, &names).await;
    plug_and_unplug(&sandbox, cri, &container, &names[..2]).await;
    // CRI-O does not tell the runtime class.
    let (reason, message) = refused(&sandbox, cri, &["--pod", "shop/web"], 10).await;
    assert_eq!(reason, "not_kata", "{message}");
    assert!(!message.contains("runtime class"), "{message}");
}

/// The engine is asked before the guest is. A gate before the guest holds the command up in
/// between.
#[tokio::test]
async fn a_container_that_is_restarted_meanwhile_is_named() {
    let containerd = containerd(SUITE).await;
    let cri = &containerd.socket();
    let pod = run_pod(&containerd, &PodOptions::named("shop", "db-0")).await;
    let app = start_container(&pod, "app", 0).await;
    let sandbox = boot_as(pod.id()).await;
    let guest_app = sandbox.start_container_as(app.id()).await;

    let gate = sandbox.run_directory().vm().join("gate.sock");
    let listener = UnixListener::bind(&gate).unwrap();
    let agent = sandbox.plugin_url();
    let (agent, port) = agent.strip_prefix("hvsock://").unwrap().rsplit_once(':').unwrap();
    let gate = format!("hvsock://{}:{port}", gate.display());
    let volume = Volume::image(MIB);
    let names = ["--pod", "shop/db-0", "--container", "app"];
    let call = with_volume(by_name(&sandbox, cri, "hot-plug", &names), &volume, "/dev/xvda");
    let call = call.args(["--agent", &gate]).start();
    let arrived = sandbox.guest().wait_for("the agent's client", LIMIT, listener.accept()).await;
    let (mut client, _) = arrived.unwrap().unwrap();

    app.stop().await.unwrap();
    guest_app.kill().await.unwrap();
    guest_app.remove().await.unwrap();
    let new = start_container(&pod, "app", 1).await;
    let guest_new = sandbox.start_container_as(new.id()).await;

    let mut agent = UnixStream::connect(agent).await.unwrap();
    tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut agent).await });
    let ended = sandbox.guest().wait_for("its end", LIMIT, call.wait_with_output()).await;
    let ended = Finished::new(&ended.unwrap().unwrap(), Duration::ZERO);
    let (reason, message) = ended.failed_with(3);
    assert_eq!(reason, "container_restarted", "{message}");
    assert!(message.contains(app.id()) && message.contains("shop/db-0"), "{message}");
    // Its remedy: the same command again.
    let again = with_volume(by_name(&sandbox, cri, "hot-plug", &names), &volume, "/dev/xvda");
    let plugged = again.run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(plugged.text("container"), guest_new.id());
    assert_eq!(guest_new.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
}

/// The harness is killed, or a test is: its child `unshare` then dies first.
#[tokio::test]
async fn nothing_is_left_of_an_engine_whose_harness_was_killed() {
    let containerd = containerd(SUITE).await;
    let pod = run_pod(&containerd, &PodOptions::named("shop", "db-0")).await;
    pod.start_container("app").await.unwrap();
    let processes = containerd.processes();
    // The shell, containerd, a shim, the pause container, the container.
    assert!(processes.len() >= 5, "{processes:?}");
    let cgroup = |process: &str| fs::read(format!("/proc/{process}/cgroup")).unwrap();
    for process in &processes {
        assert_eq!(cgroup(&process.to_string()), cgroup("self"), "process {process}");
    }
    let status = fs::read(format!("/proc/{}/status", processes[0])).unwrap();
    let status = String::from_utf8_lossy(&status);
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    kill(Pid::from_raw(parent.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    let runs = |&&process: &&u32| ProcessStat::of(process).is_some_and(|stat| stat.state != 'Z');
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Some(left) = processes.iter().find(runs) {
        assert!(Instant::now() < deadline, "process {left} is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
