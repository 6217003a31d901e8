//! `hot-unplug --force --without-guest` on real VMs: whatever the guest does, the host gets its
//! volume back, and the guest is not contacted. Where the guest recovers, `repair` detaches there
//! what it still has.

use std::time::Duration;

use protobuf::Message as _;
use rstest::rstest;
use serde_json::json;
use vm_harness::{
    AgentProxy, Container, EcrRuntime, Fault, Finished, Machine, Rule, Sandbox, Snapshot, Volume,
    command,
};

use super::{
    MIB, boot, ext4_image,
    host_failures::claim_is_free,
    hot_unplug::{at, unplug, verb},
    mount_in_guest,
    qmp_faults::short,
    repair::{repair, state_of},
    sandbox, wait_for_console,
};

fn take_command(sandbox: &Sandbox, container: &Container) -> EcrRuntime {
    verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &at(container, "/dev/xvda"))
        .args(["--force", "--without-guest"])
}

/// Takes the volume, and checks that the host has it.
async fn take(sandbox: &Sandbox, container: &Container, volume: &Volume) {
    let taken = take_command(sandbox, container).run().await;
    assert_eq!(taken.status, 0, "{}{}", taken.stdout, taken.stderr);
    let json = taken.json();
    assert_eq!(json["result"], "abandoned", "{json}");
    assert!(json["lost"].to_string().contains("/dev/xvda may remain"), "{json}");
    assert!(claim_is_free(volume));
    // It waits for no guest.
    println!("freed in {:?}", taken.elapsed);
}

/// Returns the exit status of `list`, and the states.
async fn list(sandbox: &Sandbox) -> (i32, Vec<String>) {
    let listed = verb(sandbox.ecr_runtime(), sandbox, "list", &[]).args(short(sandbox)).run().await;
    let json = listed.json();
    (listed.status, json["volumes"].as_array().unwrap().iter().map(state_of).collect())
}

/// The state before and after of the volume that `repair` did something about.
fn repaired(json: &serde_json::Value) -> Vec<String> {
    let volumes = json["volumes"].as_array().unwrap().iter();
    let done = volumes.filter(|volume| volume["action"] != "kept");
    done.map(|volume| format!("{} {}", state_of(volume), volume["state_after"])).collect()
}

/// Lets the agent, which is process 1, run or not: no signal stops that.
async fn freeze_agent(sandbox: &Sandbox, frozen: bool) {
    let group = "/sys/fs/cgroup/h";
    let script = match frozen {
        true => format!(
            "mkdir {group}; echo 1 > {group}/cgroup.procs; echo 1 > {group}/cgroup.freeze; \
             until grep -q 'frozen 1' {group}/cgroup.events; do :; done"
        ),
        false => format!("echo 0 > {group}/cgroup.freeze"),
    };
    sandbox.observer().shell(&script).await;
}

#[rstest]
#[tokio::test]
async fn volume_is_freed_from_an_agent_that_is_stopped(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let (volume, neighbour) = (Volume::loop_device(MIB), Volume::loop_device(MIB));
    sandbox.hot_plug(&container, &neighbour, "/dev/neighbour").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    freeze_agent(&sandbox, true).await;
    let unknown = "unknown: guest_unreachable".to_owned();
    assert_eq!(list(&sandbox).await, (15, vec![unknown.clone(), unknown.clone()]));
    let forced = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"));
    let forced = forced.args(["--force"]).args(short(&sandbox)).run().await;
    assert_ne!(forced.status, 0, "{}", forced.stdout);
    assert!(!claim_is_free(&volume));

    take(&sandbox, &container, &volume).await;
    let (status, states) = list(&sandbox).await;
    assert_eq!((status, states.len()), (15, 2), "the neighbour is unknown: {states:?}");
    assert!(states.contains(&"abandoned".to_owned()) && states.contains(&unknown), "{states:?}");

    freeze_agent(&sandbox, false).await;
    assert_eq!(list(&sandbox).await.0, 0);
    let other = Volume::loop_device(MIB);
    let refused = sandbox.hot_plug_command(&container, &[(&other, "/dev/xvdb")]).run().await;
    let (reason, message) = refused.failed_with(4);
    assert!(reason == "abandoned_volume" && message.contains(container.id()), "{message}");
    assert_eq!(repaired(&repair(&sandbox, 0, &[]).await), [r#"abandoned "gone""#]);
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(container.read("/dev/neighbour", 0..4096).await, neighbour.bytes(0..4096));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

/// The guest's processors are stopped, with a file system on the volume that has data to write.
#[rstest]
#[tokio::test]
async fn volume_is_freed_from_a_guest_whose_processors_are_stopped(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = ext4_image(16 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    mount_in_guest(&sandbox, &plugged).await;
    sandbox.observer().shell("dd if=/dev/zero of=/mnt/data bs=1M count=4 2>/dev/null").await;
    let mut monitor = sandbox.monitor().await.unwrap();
    monitor.execute("stop", json!({})).await.unwrap();
    take(&sandbox, &container, &volume).await;
    assert_eq!(list(&sandbox).await, (0, vec!["abandoned".to_owned()]));

    monitor.execute("cont", json!({})).await.unwrap();
    assert_eq!(repaired(&repair(&sandbox, 0, &[]).await), [r#"abandoned "gone""#]);
    container.exec_fails(&["ls", "/dev/xvda"]).await;
    assert_eq!(list(&sandbox).await, (0, Vec::new()));
    sandbox.observer().shell("umount /mnt").await;
}

/// A guest that has panicked and does not end: its QEMU runs, and no part of it ever replies.
#[tokio::test]
async fn volume_is_freed_from_a_guest_that_has_panicked() {
    let machine = Machine { kernel_parameters: vec!["panic=0".to_owned()], ..Machine::default() };
    let sandbox = boot(&machine).await;
    sandbox.expect_kernel_fault();
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let crash =
        sandbox.observer().run(&["/bin/busybox", "sh", "-c", "echo c >/proc/sysrq-trigger"]);
    tokio::select! {
        ran = crash => panic!("the guest survived: {ran:?}"),
        () = wait_for_console(&sandbox, "end Kernel panic") => {}
    }
    assert_eq!(list(&sandbox).await, (15, vec!["unknown: guest_unreachable".to_owned()]));
    take(&sandbox, &container, &volume).await;
    assert_eq!(list(&sandbox).await, (0, vec!["abandoned".to_owned()]));
    let unrepaired =
        verb(sandbox.ecr_runtime(), &sandbox, "repair", &[]).args(short(&sandbox)).run().await;
    assert_eq!(unrepaired.failed_with(8).0, "incomplete");
    assert!(claim_is_free(&volume));
}

/// Changes the method of a request: the agent does something else than it was asked.
fn method_becomes(method: &'static str) -> Fault {
    const HEADER: usize = 10;
    Fault::edit(move |frame| {
        let mut request = ttrpc::Request::parse_from_bytes(&frame[HEADER..]).unwrap();
        request.method = method.to_owned();
        let payload = request.write_to_bytes().unwrap();
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[..], &frame[4..HEADER], &payload].concat()
    })
}

/// An agent that says "detached" and does nothing: the replies to Inspect and Detach have the same
/// first fields.
#[rstest]
#[tokio::test]
async fn agent_that_lies_is_not_contacted_and_does_not_keep_a_volume(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let vsock = sandbox.run_directory().vm().join("vm.vsock");
    // It has no Unplug, so it is asked to detach.
    let lies = || {
        [
            Rule::on(command("Unplug"), method_becomes("Unknown")).each(),
            Rule::on(command("Detach"), method_becomes("Inspect")).each(),
        ]
    };
    let liar = AgentProxy::start_with(&vsock, lies()).unwrap();
    let through = |call: EcrRuntime| call.args(["--agent", &liar.address(&sandbox)]);

    let taken: Finished = through(take_command(&sandbox, &container)).run().await;
    assert_eq!((taken.status, &taken.json()["result"]), (0, &json!("abandoned")));
    assert!(liar.lines().is_empty(), "the agent was contacted: {}", liar.json_lines());
    assert!(claim_is_free(&volume));
    assert_eq!(repaired(&repair(&sandbox, 0, &[]).await), [r#"abandoned "gone""#]);
    before.assert_unchanged(&sandbox, &[&container]).await;

    // Where it is asked, its lie does not keep the volume from the host either.
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let call = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"));
    let lied = through(call).run().await;
    assert_eq!((lied.status, &lied.json()["result"]), (0, &json!("detached")));
    liar.assert_all_met();
    assert!(claim_is_free(&volume));
    container.exec(&["ls", "/dev/xvda"]).await;
}

/// A guest that takes its time over everything has no say in how long it takes.
#[rstest]
#[tokio::test]
async fn volume_is_freed_while_a_request_hangs_in_the_guest(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let vsock = sandbox.run_directory().vm().join("vm.vsock");
    let rules = [Rule::on(command("Detach"), Fault::Drop).each()];
    let silent = AgentProxy::start_with(&vsock, rules).unwrap();
    let call = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"));
    let limit = sandbox.guest().scaled(Duration::from_secs(4));
    let hung = call
        .args(["--force", "--agent", &silent.address(&sandbox)])
        .args(["--timeout", &format!("{}s", limit.as_secs())])
        .run()
        .await;
    assert_eq!(hung.failed_with(8).0, "incomplete");
    assert!(!claim_is_free(&volume));
    take(&sandbox, &container, &volume).await;
    assert_eq!(repaired(&repair(&sandbox, 0, &[]).await), [r#"abandoned "gone""#]);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
}
