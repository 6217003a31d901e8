//! `check --sandbox` on sandboxes without problems and on some with problems.

use rstest::rstest;
use serde_json::Value;
use vm_harness::{
    Cgroup, ContainerOptions, DeviceFilter, Finished, Machine, Sandbox, Snapshot, Volume,
};

use super::{MIB, boot, sandbox};

async fn check(sandbox: &Sandbox) -> Finished {
    sandbox.ecr_runtime().args(["check", "--output", "json", "--sandbox", sandbox.id()]).run().await
}

/// Returns the result of the check `name`.
fn named(finished: &Finished, name: &str) -> Value {
    let json = finished.json();
    let checks = json["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no {name}: {json:#}")).clone()
}

/// Returns the result of the check of the container `id`.
fn of_container(finished: &Finished, id: &str) -> Value {
    let json = finished.json();
    let checks = json["checks"].as_array().unwrap();
    let found =
        checks.iter().find(|check| check["name"] == "container" && check["container"] == id);
    found.unwrap_or_else(|| panic!("no container {id}: {json:#}")).clone()
}

#[rstest]
#[tokio::test]
async fn sandbox_is_checked_and_nothing_changes(#[future(awt)] sandbox: Sandbox) {
    let open = sandbox.start_container().await;
    let filtered =
        ContainerOptions { device_filter: DeviceFilter::Bpf, ..ContainerOptions::default() };
    let filtered = sandbox.start_container_with(&filtered).await;
    let volume = Volume::loop_device(MIB);
    let plugged = sandbox.hot_plug(&open, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&open, &filtered]).await;
    let finished = check(&sandbox).await;
    assert_eq!(finished.status, 0, "{}{}", finished.stdout, finished.stderr);
    before.assert_unchanged(&sandbox, &[&open, &filtered]).await;

    assert_eq!(finished.json()["sandbox"], sandbox.id());
    let version = sandbox.qemu_version().await.unwrap();
    assert!(named(&finished, "qemu_version")["message"].as_str().unwrap().starts_with(&version));
    for (name, found) in [
        ("vm", "running"),
        ("volumes", "1 attached"),
        ("addresses", "16319 of 16320"),
        ("scan_mode", "none"),
        ("plugin", env!("CARGO_PKG_VERSION")),
        ("scsi_hosts", "virtio-scsi hosts in the guest: 1"),
    ] {
        let check = named(&finished, name);
        assert!(
            check["status"] == "ok" && check["message"].as_str().unwrap().starts_with(found),
            "{check}"
        );
    }
    let check = of_container(&finished, open.id());
    let message_contains =
        |check: &Value, text: &str| check["message"].as_str().unwrap().contains(text);
    assert!(
        check["status"] == "warning"
            && message_contains(&check, "filter: none")
            && message_contains(&check, "CAP_MKNOD"),
        "{check}"
    );
    let check = of_container(&finished, filtered.id());
    assert!(check["status"] == "ok" && message_contains(&check, "bpf (programs: 1)"), "{check}");

    // `inspect` gives the same warning, and it is true: a sibling opens the volume through a node
    // that it creates itself.
    let inspect = ["block-volume", "inspect", "--sandbox", sandbox.id(), "--volume", plugged.id()];
    let inspected = sandbox.ecr_runtime().args(inspect).run().await;
    assert!(inspected.stdout.contains("CAP_MKNOD"), "{}", inspected.stdout);
    let sibling = sandbox.start_container().await;
    let (major, minor) = plugged.device_number().split_once(':').unwrap();
    sibling.exec(&["mknod", "/dev/mine", "b", major, minor]).await;
    assert_eq!(sibling.read("/dev/mine", 0..4096).await, volume.bytes(0..4096));
    filtered.exec(&["mknod", "/dev/mine", "b", major, minor]).await;
    filtered.exec_fails(&["dd", "if=/dev/mine", "of=/dev/null", "count=1"]).await;
}

#[tokio::test]
async fn every_container_is_filtered_on_cgroup_v1_and_an_automatic_scan_is_reported() {
    let machine =
        Machine { cgroup: Cgroup::V1, scan: vm_harness::Scan::Async, ..Machine::default() };
    let sandbox = boot(&machine).await;
    let container = sandbox.start_container().await;
    let finished = check(&sandbox).await;
    assert_eq!(finished.status, 0, "{}", finished.stdout);
    let check = of_container(&finished, container.id());
    assert!(
        check["status"] == "ok" && check["message"].as_str().unwrap().contains("v1 (allow-list)"),
        "{check}"
    );
    assert!(named(&finished, "scan_mode")["message"].as_str().unwrap().contains("by itself"));
}

#[tokio::test]
async fn reasons_why_a_sandbox_cannot_take_a_volume_are_reported() {
    let kernel_parameters = vec!["agent.block_volume=off".to_owned()];
    let machine = Machine { controller: Vec::new(), kernel_parameters, ..Machine::default() };
    let sandbox = boot(&machine).await;
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let finished = check(&sandbox).await;
    assert_eq!(finished.status, 10, "{}", finished.stdout);
    for (name, remedy) in [("controller", "virtio-scsi"), ("plugin", "agent-plugin")] {
        let check = named(&finished, name);
        assert_eq!(
            (&check["status"], &check["exit_code"]),
            (&"problem".into(), &10.into()),
            "{check}"
        );
        assert!(check["remedy"].as_str().unwrap().contains(remedy), "{check}");
    }
    before.assert_unchanged(&sandbox, &[&container]).await;
    let other = std::os::unix::net::UnixStream::connect(sandbox.qmp_socket()).unwrap();
    let finished = check(&sandbox).await;
    assert_eq!(finished.status, 13, "{}", finished.stdout);
    let lines = named(&finished, "qmp")["remedy"].to_string();
    assert!(lines.contains("ecr-qemu"), "{lines}");
    drop(other);
}

#[tokio::test]
async fn policy_that_refuses_is_reported_with_the_rules_that_the_sandbox_needs() {
    let kernel_parameters = vec!["agent.deny=ProbeBlockVolumeRequest".to_owned()];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let finished = check(&sandbox).await;
    assert_eq!(finished.status, 9, "{}{}", finished.stdout, finished.stderr);
    before.assert_unchanged(&sandbox, &[&container]).await;
    let check = named(&finished, "plugin");
    let message = check["message"].as_str().unwrap();
    assert!(
        message.starts_with("the agent's policy refuses the request: ")
            && message.contains("ProbeBlockVolumeRequest is denied"),
        "{check}"
    );
    let lines: Vec<_> = check["remedy"].as_str().unwrap().lines().collect();
    let rules = include_str!("../../../agent-plugin/examples/kata-agent/rules.rego");
    let rules = rules.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut defaults = 0;
    for rule in rules {
        assert!(lines.contains(&rule), "{rule}: {check:#}");
        defaults += usize::from(rule.starts_with("default "));
    }
    assert_eq!(defaults, 5);
    let socket = sandbox.run_directory().sandbox_state().join("shim-monitor.sock");
    let socket = format!("--unix-socket {} -X PUT ", socket.display());
    assert!(lines.iter().any(|line| line.contains(&socket)), "{check:#}");
    // The guest allows everything else, and QEMU is checked all the same.
    assert_eq!(named(&finished, "controller")["status"], "ok");
}
