//! The harness itself: what users, scripts and other tests rely on.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::{ffi::OsStrExt as _, net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rstest::rstest;
use serde_json::Value;
use vm_harness::{Cgroup, Environment, Error, Machine, QmpProxy, Sandbox, Snapshot, Volume};

use super::{MIB, boot_with_faults, sandbox, set_guest_faults, wait_for_console};

fn vm_harness() -> Command {
    Command::new(Environment::from_variables().vm_harness().unwrap())
}

#[test]
fn boot_keeps_a_sandbox_for_other_processes_until_its_input_ends() {
    let mut boot = vm_harness()
        .args([
            "boot",
            "--containers",
            "2",
            "--cgroup",
            "v1",
            "--scan",
            "async",
            "--device-filter",
            "bpf",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(boot.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let report: Value = serde_json::from_str(&line).expect("one line of JSON");
    for key in [
        "run_dir",
        "sandbox",
        "containers",
        "qmp",
        "agent",
        "plugin",
        "qemu_pid",
        "accel",
        "kernel",
        "qemu",
    ] {
        assert!(!report[key].is_null(), "{key} is missing in {report}");
    }
    let (run_dir, containers) =
        (report["run_dir"].as_str().unwrap(), report["containers"].as_array().unwrap());
    assert_eq!(containers.len(), 2);
    let container = containers[1].as_str().unwrap();
    let volume = Volume::image(MIB);
    let plug = Command::new(Environment::from_variables().ecr_runtime().unwrap())
        .args([
            "--run-dir",
            run_dir,
            "block-volume",
            "hot-plug",
            "--container",
            container,
            "--sandbox",
        ])
        .args([
            report["sandbox"].as_str().unwrap(),
            "--block-volume",
            volume.name(),
            "--device-path",
            "/dev/xvda",
        ])
        .status()
        .unwrap();
    assert!(plug.success());
    let exec = |command: &[&str]| {
        let mut exec = vm_harness();
        exec.args(["exec", "--run-dir", run_dir, "--container", container, "--"]).args(command);
        exec.stdin(Stdio::null()).output().unwrap()
    };
    let read = exec(&["dd", "if=/dev/xvda", "bs=64k", "count=1"]);
    assert!(read.status.success());
    assert_eq!(read.stdout, volume.bytes(0..65536));
    assert_eq!(exec(&["sh", "-c", "exit 42"]).status.code(), Some(42));
    drop(boot.stdin.take());
    assert!(boot.wait().unwrap().success());
    assert!(!std::path::Path::new(run_dir).exists(), "the run directory is removed");
    assert!(!std::path::Path::new(&format!("/proc/{}", report["qemu_pid"])).exists());
}

/// Starts `vm-harness boot`; returns the line that it prints when the sandbox is there.
fn boot(arguments: &[&str]) -> (Child, String) {
    let mut boot = vm_harness()
        .arg("boot")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(boot.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (boot, line)
}

#[test]
fn manual_boot_provides_logs_console_and_proxies() {
    let (mut boot, line) =
        boot(&["--qmp-rule", "reply:device_add=cut", "--agent-rule", "reply:Plug.ready=split:1"]);
    let report: Value = serde_json::from_str(&line).expect("one line of JSON");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let run_dir = text(&report["run_dir"]);
    let agent = text(&report["proxies"]["agent"]);
    let container = text(&report["containers"][0]);
    let run = |program: std::path::PathBuf, arguments: &[&str]| {
        Command::new(program).args(arguments).output().unwrap()
    };
    let environment = Environment::from_variables();
    let volume = Volume::image(MIB);
    let plug = |expected: i32| {
        let arguments = [
            "--run-dir",
            &run_dir,
            "block-volume",
            "hot-plug",
            "--container",
            &container,
            "--agent",
            &agent,
        ];
        let paths = ["--block-volume", volume.name(), "--device-path", "/dev/xvda"];
        let plugged =
            run(environment.ecr_runtime().unwrap(), &[&arguments[..], &paths[..]].concat());
        assert_eq!(
            plugged.status.code(),
            Some(expected),
            "{}",
            String::from_utf8_lossy(&plugged.stderr)
        );
    };
    // The proxy in front of QEMU is found without an option, and its rule applies once.
    plug(14);
    plug(0);
    for (record, words) in
        [("qmp_record", ["device_add", "cut"]), ("agent_record", ["Plug.attached", "split:1"])]
    {
        let record = std::fs::read_to_string(text(&report["proxies"][record])).unwrap();
        assert!(words.iter().all(|word| record.contains(word)), "{record}");
    }
    let logs = run(environment.vm_harness().unwrap(), &["logs", "--run-dir", &run_dir, "-n", "5"]);
    let logs = String::from_utf8(logs.stdout).unwrap();
    for heading in ["==> console", "==> agent and programs", "==> QEMU", "==> vhost-device-vsock"] {
        assert!(logs.contains(heading), "{logs}");
    }
    let console = vm_harness()
        .args(["console", "--run-dir", &run_dir])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(boot.stdin.take());
    let hints = boot.wait_with_output().unwrap();
    let hints = String::from_utf8(hints.stderr).unwrap();
    for hint in
        ["hot-plug --container", "hot-unplug", "-it -- sh", "console --run-dir", "logs --run-dir"]
    {
        assert!(hints.contains(hint), "{hint}: {hints}");
    }
    // The command follows the console to its end, and ends with the sandbox.
    let console = console.wait_with_output().unwrap();
    assert!(console.status.success(), "{console:?}");
    let shown = String::from_utf8(console.stdout).unwrap();
    assert!(shown.contains("sd ") || shown.contains("agent"), "{shown}");
}

#[rstest]
#[tokio::test]
async fn guest_that_crashes_fails_a_wait_immediately_with_its_console(
    #[future(awt)] sandbox: Sandbox,
) {
    let observer = sandbox.observer().clone();
    let start = Instant::now();
    let crash = tokio::spawn(async move {
        // The guest cannot answer any more.
        let _ = observer.write("/proc/sysrq-trigger", "c").await;
    });
    let waited = sandbox
        .guest()
        .wait_for("a reply", Duration::from_secs(600), std::future::pending::<()>())
        .await;
    crash.abort();
    let error = waited.expect_err("the guest has crashed");
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    assert!(matches!(error, Error::Ended { program: "QEMU", .. }), "{error:?}");
    assert!(
        error.to_string().contains("sysrq_handle_crash"),
        "the error contains the console: {error}"
    );
    assert!(error.to_string().contains("-kernel"), "the error contains the command: {error}");
    assert!(sandbox.guest().console().splat().is_some());
    // A crashed guest also fails its test when it is dropped. This test expects that.
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(sandbox)));
    assert!(dropped.is_err());
}

#[tokio::test]
async fn guest_that_cannot_boot_fails_immediately() {
    let start = Instant::now();
    let kernel_parameters = vec!["rdinit=/nothing".to_owned(), "root=/dev/nothing".to_owned()];
    let error = Sandbox::boot(&Machine { kernel_parameters, ..Machine::default() })
        .await
        .expect_err("there is no init");
    assert!(matches!(error, Error::Ended { program: "QEMU", .. }), "{}", error.chain());
    assert!(error.to_string().contains("Kernel panic"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

/// `boot` takes the agent as `conformance` does, and so names a file that does not exist.
#[test]
fn boot_takes_an_agent_by_its_path() {
    let missing = vm_harness().args(["boot", "--agent", "/no/such/agent"]).output().unwrap();
    let error = String::from_utf8(missing.stderr).unwrap();
    assert!(!missing.status.success() && error.contains("/no/such/agent"), "{error}");
    // The same agent with shared libraries: another image than the default one.
    let agent = Environment::from_variables().target.join("release/reference-agent");
    let (mut boot, line) = boot(&["--agent", agent.to_str().unwrap(), "--containers", "0"]);
    drop(boot.stdin.take());
    let ended = boot.wait_with_output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let report: Value = serde_json::from_str(&line).expect("one line of JSON");
    let image = report["image"].as_str().unwrap();
    assert!(image.contains("/images/own-"), "{image}");
}

#[tokio::test]
async fn snapshot_covers_everything_that_a_hot_plug_changes() {
    let sandbox = boot_with_faults(&Machine { cgroup: Cgroup::V1, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let containers = [&container];
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &containers).await;
    set_guest_faults(&sandbox, "attach-after-publish=wait\n").await;
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).start();
    // The hot-plug waits after its last step: all its changes are made, and its thread and its
    // connection exist.
    wait_for_console(&sandbox, "fault point attach-after-publish").await;
    let during = Snapshot::of(&sandbox, &containers).await;
    for (what, changed) in [
        ("block nodes", before.nodes != during.nodes),
        ("devices", before.devices != during.devices),
        ("descriptor sets", before.fdsets != during.fdsets),
        ("SCSI devices", before.scsi != during.scsi),
        ("the container's devices", before.container_devices != during.container_devices),
        ("device rules", before.device_filters != during.device_filters),
        ("the plugin's threads", before.agent.plugin_threads != during.agent.plugin_threads),
        ("the agent's descriptors", before.agent.descriptors != during.agent.descriptors),
    ] {
        assert!(changed, "{what}: {before:#?}\n{during:#?}");
    }
    set_guest_faults(&sandbox, "").await;
    assert!(command.wait_with_output().await.unwrap().status.success());
    // In a separate task, because it panics.
    let compared =
        tokio::spawn(async move { before.assert_unchanged(&sandbox, &[&container]).await });
    assert!(compared.await.is_err_and(|error| error.is_panic()), "a plugged volume is a change");
}

#[rstest]
#[tokio::test]
async fn proxy_records_the_commands_of_a_hot_plug(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    command.args(["--qmp", proxy.path().to_str().unwrap()]).run().await.succeeded(sandbox.guest());
    let commands = proxy.commands();
    let plug: Vec<_> = commands
        .iter()
        .map(String::as_str)
        .filter(|name| ["add-fd", "blockdev-add", "device_add"].contains(name))
        .collect();
    // The first one is refused: the descriptor set is free. The last one has the commit record.
    let expected = ["blockdev-add", "add-fd", "blockdev-add", "device_add", "add-fd"];
    assert_eq!(plug, expected, "{commands:?}");
}

#[rstest]
#[tokio::test]
async fn client_that_disconnects_without_reading_leaves_no_connection(
    #[future(awt)] sandbox: Sandbox,
) {
    use tokio::io::AsyncWriteExt as _;
    let before = Snapshot::of(&sandbox, &[]).await;
    for _ in 0..4 {
        let vsock = sandbox.run_directory().vm().join("vm.vsock");
        let mut client = tokio::net::UnixStream::connect(vsock).await.unwrap();
        client.write_all(b"CONNECT 1024\n").await.unwrap();
        // The reply has arrived, and the client does not read it.
        sandbox
            .guest()
            .wait_for("a reply", Duration::from_secs(10), client.readable())
            .await
            .unwrap()
            .unwrap();
    }
    before.assert_unchanged(&sandbox, &[]).await;
}

/// The open descriptors of the sandbox's vhost-device-vsock, which listens on `vsock`.
fn descriptors_of_vsock_device(vsock: &Path) -> usize {
    let is_it = |process: &Path| {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0).map(OsStr::from_bytes);
        words.next().is_some_and(|program| program.as_bytes().ends_with(b"/vhost-device-vsock"))
            && words.any(|word| word == vsock)
    };
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let device = processes.into_iter().find(|process| is_it(process)).expect("it runs");
    fs::read_dir(device.join("fd")).unwrap().count()
}

/// The device used to keep such a client, and to spend a processor on its event until the VM ended.
#[rstest]
#[tokio::test]
async fn vsock_device_closes_clients_that_hang_up_before_they_are_read(
    #[future(awt)] sandbox: Sandbox,
) {
    let vsock = sandbox.run_directory().vm().join("vm.vsock");
    let before = descriptors_of_vsock_device(&vsock);
    for _ in 0..20 {
        drop(UnixStream::connect(&vsock).unwrap());
    }
    // A connection that is accepted after them: the device has seen them all.
    Snapshot::of(&sandbox, &[]).await;
    let closed = async {
        while descriptors_of_vsock_device(&vsock) > before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    sandbox
        .guest()
        .wait_for("the clients' descriptors to be closed", Duration::from_secs(10), closed)
        .await
        .unwrap();
}
