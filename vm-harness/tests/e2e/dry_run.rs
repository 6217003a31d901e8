//! `--dry-run` on real VMs: QEMU gets queries alone, the guest is only looked at, and what would be
//! refused is refused.

use rstest::rstest;
use vm_harness::{Container, EcrRuntime, QmpProxy, Sandbox, Snapshot, Volume};

use super::{MIB, host_failures::claim_is_free, hot_unplug::verb, repair::repair, sandbox};

fn at(container: &Container) -> [&str; 5] {
    ["--container", container.id(), "--device-path", "/dev/xvda", "--dry-run"]
}

/// A call through a proxy that changes nothing; its exit status and result.
async fn look(sandbox: &Sandbox, containers: &[&Container], call: EcrRuntime) -> (i32, String) {
    let before = Snapshot::of(sandbox, containers).await;
    let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
    let finished = call.args(["--qmp", proxy.path().to_str().unwrap()]).run().await;
    let looks = |name: &String| {
        name.starts_with("query-")
            || ["qmp_capabilities", "qom-list", "qom-get"].contains(&name.as_str())
    };
    let commands = proxy.commands();
    assert!(commands.len() > 2 && commands.iter().all(looks), "{commands:?}");
    before.assert_unchanged(sandbox, containers).await;
    let json = finished.json();
    let told = if finished.status == 0 { &json["result"] } else { &json["error"]["reason"] };
    (finished.status, told.as_str().unwrap().to_owned())
}

#[rstest]
#[tokio::test]
async fn what_would_be_done_is_said_and_not_done(#[future(awt)] sandbox: Sandbox) {
    let (container, other) = (sandbox.start_container().await, sandbox.start_container().await);
    let containers = [&container, &other];
    let volume = Volume::loop_device(MIB);
    let plug = |container: &Container, more: &[&str]| {
        sandbox
            .hot_plug_command(container, &[(&volume, "/dev/xvda")])
            .args(["--dry-run"])
            .args(more)
    };
    let look = async |call: EcrRuntime| look(&sandbox, &containers, call).await;
    let said = |text: &str| (0, text.to_owned());
    assert_eq!(look(plug(&container, &[])).await, said("would attach"));
    assert!(claim_is_free(&volume));
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(look(plug(&container, &[])).await, said("unchanged"));
    assert_eq!(look(plug(&other, &[])).await, (4, "volume_taken".to_owned()));
    assert_eq!(look(plug(&other, &["--shared"])).await, said("would attach"));
    let unplug = |more: &[&str]| {
        verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container)).args(more)
    };
    assert_eq!(look(unplug(&[])).await, said("would detach"));
    let in_use = |command: &str, more: &[&str]| {
        verb(sandbox.ecr_runtime(), &sandbox, command, &at(&container)).args(more)
    };
    assert_eq!(look(in_use("throttle", &["--iops", "100"])).await, said("would throttle"));
    assert_eq!(look(in_use("throttle", &["--iops", "0"])).await, said("unchanged"));
    assert_eq!(look(in_use("resize", &[])).await, said("unchanged"));
    volume.resize(2 * MIB);
    assert_eq!(look(in_use("resize", &[])).await, said("would resize"));
    // Somebody has it open.
    container.exec(&["sh", "-c", "sleep 1000 < /dev/xvda > /dev/null 2>&1 &"]).await;
    assert_eq!(look(unplug(&[])).await, (5, "busy".to_owned()));
    assert_eq!(look(unplug(&["--force"])).await, said("would detach"));
}

#[rstest]
#[tokio::test]
async fn repair_says_what_it_would_do(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let killed = sandbox.ecr_runtime_with_faults("after-device-add=kill");
    let killed =
        killed.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).run().await;
    assert_eq!(killed.status, 128 + 9);
    let containers = [&container];
    let call = || verb(sandbox.ecr_runtime(), &sandbox, "repair", &["--dry-run"]);
    let would = look(&sandbox, &containers, call()).await;
    assert_eq!(would, (0, "would repair".to_owned()));
    let plug = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--dry-run"]);
    assert_eq!(look(&sandbox, &containers, plug).await, (0, "would attach".to_owned()));
    let unplug = verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container));
    assert_eq!(look(&sandbox, &containers, unplug).await, (0, "would detach".to_owned()));
    assert_eq!(repair(&sandbox, 0, &[]).await["result"], "repaired");
    assert_eq!(look(&sandbox, &containers, call()).await, (0, "unchanged".to_owned()));
}
