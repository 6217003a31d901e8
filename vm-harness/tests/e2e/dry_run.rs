//! `--dry-run` on real VMs: QEMU gets only queries, the guest is only inspected, and what would be
//! refused is refused.

use rstest::rstest;
use vm_harness::{Container, EcrRuntime, QmpProxy, Sandbox, Snapshot, Volume};

use super::{MIB, host_failures::claim_is_free, hot_unplug::verb, repair::repair, sandbox};

fn at(container: &Container) -> [&str; 5] {
    ["--container", container.id(), "--device-path", "/dev/xvda", "--dry-run"]
}

/// Runs a command through a proxy and checks that it changes nothing. Returns its exit status and
/// its result, or the reason of its error.
async fn dry_run(sandbox: &Sandbox, containers: &[&Container], call: EcrRuntime) -> (i32, String) {
    let before = Snapshot::of(sandbox, containers).await;
    let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
    let finished = call.args(["--qmp", proxy.path().to_str().unwrap()]).run().await;
    let is_query = |name: &String| {
        name.contains("query-")
            || ["qmp_capabilities", "qom-list", "qom-get"].contains(&name.as_str())
    };
    let commands = proxy.commands();
    assert!(commands.len() > 2 && commands.iter().all(is_query), "{commands:?}");
    before.assert_unchanged(sandbox, containers).await;
    let json = finished.json();
    assert_eq!(json["dry_run"], true, "{json}");
    let reported = if finished.status == 0 { &json["result"] } else { &json["error"]["reason"] };
    (finished.status, reported.as_str().unwrap().to_owned())
}

#[rstest]
#[tokio::test]
async fn dry_run_reports_the_result_and_changes_nothing(#[future(awt)] sandbox: Sandbox) {
    let (container, other) = (sandbox.start_container().await, sandbox.start_container().await);
    let containers = [&container, &other];
    let volume = Volume::loop_device(MIB);
    let plug = |container: &Container, more: &[&str]| {
        sandbox
            .hot_plug_command(container, &[(&volume, "/dev/xvda")])
            .args(["--dry-run"])
            .args(more)
    };
    let dry_run = async |call: EcrRuntime| dry_run(&sandbox, &containers, call).await;
    let succeeds = |text: &str| (0, text.to_owned());
    assert_eq!(dry_run(plug(&container, &[])).await, succeeds("attached"));
    assert!(claim_is_free(&volume));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(dry_run(plug(&container, &[])).await, succeeds("unchanged"));
    assert_eq!(dry_run(plug(&other, &[])).await, (4, "volume_taken".to_owned()));
    assert_eq!(dry_run(plug(&other, &["--shared"])).await, succeeds("attached"));
    let unplug = |more: &[&str]| {
        verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container)).args(more)
    };
    assert_eq!(dry_run(unplug(&[])).await, succeeds("detached"));
    let command_for = |command: &str, more: &[&str]| {
        verb(sandbox.ecr_runtime(), &sandbox, command, &at(&container)).args(more)
    };
    assert_eq!(dry_run(command_for("throttle", &["--iops", "100"])).await, succeeds("throttled"));
    assert_eq!(dry_run(command_for("throttle", &["--iops", "0"])).await, succeeds("unchanged"));
    assert_eq!(dry_run(command_for("resize", &[])).await, succeeds("unchanged"));
    volume.resize(2 * MIB);
    assert_eq!(dry_run(command_for("resize", &[])).await, succeeds("resized"));
    // A process in the container has it open.
    container.exec(&["sh", "-c", "sleep 1000 < /dev/xvda > /dev/null 2>&1 &"]).await;
    assert_eq!(dry_run(unplug(&[])).await, (5, "busy".to_owned()));
    assert_eq!(dry_run(unplug(&["--force"])).await, succeeds("detached"));
}

#[rstest]
#[tokio::test]
async fn dry_run_of_repair_reports_what_it_would_do(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let killed = sandbox.ecr_runtime_with_faults("after-device-add=kill");
    let killed =
        killed.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).run().await;
    assert_eq!(killed.status, 128 + 9);
    let containers = [&container];
    let call = || verb(sandbox.ecr_runtime(), &sandbox, "repair", &["--dry-run"]);
    let predicted = dry_run(&sandbox, &containers, call()).await;
    assert_eq!(predicted, (0, "repaired".to_owned()));
    let plug = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--dry-run"]);
    assert_eq!(dry_run(&sandbox, &containers, plug).await, (0, "attached".to_owned()));
    let unplug = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container));
    assert_eq!(dry_run(&sandbox, &containers, unplug).await, (0, "detached".to_owned()));
    assert_eq!(repair(&sandbox, 0, &[]).await["result"], "repaired");
    assert_eq!(dry_run(&sandbox, &containers, call()).await, (0, "unchanged".to_owned()));
}
