//! Invalid input: each case has its own message and exit status, and nothing is changed.

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::PathBuf, time::Duration};

use rstest::rstest;
use vm_harness::{
    Container, EcrRuntime, LoopOptions, Machine, QmpProxy, Sandbox, Snapshot, Volume,
};

use super::{MIB, boot, make_ext4, sandbox};

/// Runs `command`, which must fail, and compares everything with `before`. Returns the reason and
/// the message.
async fn refused(
    sandbox: &Sandbox,
    containers: &[&Container],
    before: &Snapshot,
    command: EcrRuntime,
    status: i32,
) -> (String, String) {
    let finished = command.run().await;
    let (reason, message) = finished.failed_with(status);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    before.assert_unchanged(sandbox, containers).await;
    (reason, message)
}

fn plug(
    sandbox: &Sandbox,
    of_sandbox: &str,
    container: &str,
    source: &str,
    path: &str,
) -> EcrRuntime {
    sandbox.ecr_runtime().args([
        "block-volume",
        "hot-plug",
        "--output",
        "json",
        "--sandbox",
        of_sandbox,
        "--container",
        container,
        "--block-volume",
        source,
        "--device-path",
        path,
    ])
}

#[rstest]
#[tokio::test]
async fn names_that_do_not_exist_or_are_invalid_are_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let stopped = sandbox.start_container().await;
    stopped.kill().await.unwrap();
    let created = sandbox.create_container(&vm_harness::ContainerOptions::default()).await.unwrap();
    let twin = sandbox.run_dir().join("sbs").join(format!("{}twin", &sandbox.id()[..8]));
    fs::create_dir(twin).unwrap();
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let (sid, cid) = (sandbox.id(), container.id());
    for (what, command, status, named) in [
        ("no such sandbox", plug(&sandbox, "f00", cid, volume.name(), "/dev/xvda"), 3, "f00"),
        (
            "ambiguous prefix",
            plug(&sandbox, &sid[..4], cid, volume.name(), "/dev/xvda"),
            2,
            &sid[..4],
        ),
        (
            "slash in the sandbox",
            plug(&sandbox, "../vm", cid, volume.name(), "/dev/xvda"),
            2,
            "../vm",
        ),
        ("dots in the sandbox", plug(&sandbox, "..", cid, volume.name(), "/dev/xvda"), 2, ".."),
        (
            "slash in the container",
            plug(&sandbox, sid, "a/b", volume.name(), "/dev/xvda"),
            2,
            "a/b",
        ),
        ("no such container", plug(&sandbox, sid, "f00", volume.name(), "/dev/xvda"), 3, "f00"),
        (
            "container stopped",
            plug(&sandbox, sid, stopped.id(), volume.name(), "/dev/xvda"),
            3,
            stopped.id(),
        ),
        (
            "container not started",
            plug(&sandbox, sid, created.id(), volume.name(), "/dev/xvda"),
            3,
            created.id(),
        ),
        ("relative path", plug(&sandbox, sid, cid, volume.name(), "dev/xvda"), 2, "dev/xvda"),
        (
            "path with dots",
            plug(&sandbox, sid, cid, volume.name(), "/dev/../xvda"),
            2,
            "/dev/../xvda",
        ),
        (
            "file as a directory",
            plug(&sandbox, sid, cid, volume.name(), "/dev/null/xvda"),
            3,
            "/dev/null",
        ),
    ] {
        let (_, message) = refused(&sandbox, &[&container], &before, command, status).await;
        assert!(message.contains(named), "{what}: the message names {named:?}: {message}");
    }
}

#[rstest]
#[tokio::test]
async fn device_paths_that_are_taken_are_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    container.exec(&["sh", "-c", "echo x > /dev/file; mkdir /dev/directory; ln -s /dev/null /dev/link; ln -s nowhere /dev/dangling; mknod /dev/block b 8 0"]).await;
    let proxy = QmpProxy::start(&sandbox.qmp_socket()).unwrap();
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for path in
        ["/dev/file", "/dev/directory", "/dev/link", "/dev/dangling", "/dev/null", "/dev/block"]
    {
        let command = plug(&sandbox, sandbox.id(), container.id(), volume.name(), path);
        let command = command.args(["--qmp", proxy.path().to_str().unwrap()]);
        let (reason, message) = refused(&sandbox, &[&container], &before, command, 4).await;
        assert_eq!(reason, "path_taken", "{message}");
        assert!(message.contains(path), "the message names {path}: {message}");
        let commands = proxy.commands();
        assert!(
            commands.iter().any(|command| command == "query-fdsets"),
            "the proxy saw: {commands:?}"
        );
        let has_disk = commands.iter().any(|command| command == "device_add");
        assert!(!has_disk, "{path}: the guest is asked before it gets a disk: {commands:?}");
    }
    assert_eq!(container.exec(&["cat", "/dev/file"]).await, b"x\n");
}

#[rstest]
#[tokio::test]
async fn sources_that_are_unsafe_are_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    fs::write(&empty, "").unwrap();
    let odd = directory.path().join("odd");
    fs::write(&odd, vec![1; 1000]).unwrap();
    let mounted = Volume::loop_device(8 * MIB);
    let mount_point = directory.path().join("mounted");
    fs::create_dir(&mount_point).unwrap();
    make_ext4(&mounted);
    let mount = Mount::of(&mounted, mount_point);
    let held = Volume::loop_device(MIB);
    let holder =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(held.path()).unwrap();
    let read_only =
        Volume::loop_device_with(MIB, LoopOptions { read_only: true, ..LoopOptions::default() });
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let missing = directory.path().join("missing");
    for (what, source, status) in [
        ("missing", missing.to_str().unwrap(), 3),
        ("empty", empty.to_str().unwrap(), 6),
        ("odd size", odd.to_str().unwrap(), 6),
        ("directory", directory.path().to_str().unwrap(), 6),
        ("character device", "/dev/zero", 6),
        ("mounted", mounted.name(), 6),
        ("held", held.name(), 6),
        ("read-only", read_only.name(), 6),
    ] {
        let command = plug(&sandbox, sandbox.id(), container.id(), source, "/dev/xvda");
        let (_, message) = refused(&sandbox, &[&container], &before, command, status).await;
        assert!(message.contains(source), "{what}: the message names {source}: {message}");
    }
    drop(holder);
    drop(mount);
    // The remedy works: the same device, read-only.
    let command = plug(&sandbox, sandbox.id(), container.id(), read_only.name(), "/dev/xvda")
        .args(["--read-only"]);
    command.run().await.succeeded(sandbox.guest());
}

#[rstest]
#[tokio::test]
async fn qmp_socket_held_by_another_client_is_reported_within_three_seconds(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let other = std::os::unix::net::UnixStream::connect(sandbox.qmp_socket()).unwrap();
    let finished = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).run().await;
    let (reason, message) = finished.failed_with(13);
    assert_eq!(reason, "qmp_held", "{message}");
    assert!(finished.elapsed < Duration::from_secs(3), "{:?}", finished.elapsed);
    before.assert_unchanged(&sandbox, &[&container]).await;
    drop(other);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
}

#[rstest]
#[tokio::test]
async fn stopped_qemu_is_a_time_out(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let qemu = i32::try_from(sandbox.guest().qemu_id()).unwrap();
    let qemu = nix::unistd::Pid::from_raw(qemu);
    nix::sys::signal::kill(qemu, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let finished = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).run().await;
    nix::sys::signal::kill(qemu, nix::sys::signal::Signal::SIGCONT).unwrap();
    finished.failed_with(7);
    before.assert_unchanged(&sandbox, &[&container]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
}

#[rstest]
#[tokio::test]
async fn unreachable_agent_is_reported_before_qemu_is_changed(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let closed_port = sandbox.agent_url().replace(":1024", ":1999");
    for agent in ["unix:///nowhere/agent.sock", closed_port.as_str()] {
        let command = sandbox
            .hot_plug_command(&container, &[(&volume, "/dev/xvda")])
            .args(["--agent", agent]);
        let (reason, message) = refused(&sandbox, &[&container], &before, command, 14).await;
        assert_eq!(reason, "agent_unreachable", "{message}");
    }
    for agent in ["http://agent", "vsock://host:port"] {
        let command = sandbox
            .hot_plug_command(&container, &[(&volume, "/dev/xvda")])
            .args(["--agent", agent]);
        refused(&sandbox, &[&container], &before, command, 2).await;
    }
}

#[rstest]
#[tokio::test]
async fn sandbox_without_a_virtio_scsi_controller_is_unsupported() {
    let sandbox = boot(&Machine { controller: Vec::new(), ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let (_, message) = refused(&sandbox, &[&container], &before, command, 10).await;
    assert!(message.contains("virtio-scsi"), "{message}");
}

#[rstest]
#[tokio::test]
async fn agent_without_the_plugin_is_unsupported() {
    let kernel_parameters = vec!["agent.block_volume=off".to_owned()];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let (_, message) = refused(&sandbox, &[&container], &before, command, 10).await;
    assert!(message.contains("plugin"), "{message}");
}

#[rstest]
#[case::of_a_dry_run("ProbeBlockVolumeRequest", &["--dry-run"])]
#[case::of_a_plug("AttachBlockVolumeRequest", &[])]
#[tokio::test]
async fn policy_of_the_agent_decides(#[case] method: &str, #[case] arguments: &[&str]) {
    let kernel_parameters = vec![format!("agent.deny={method}")];
    let sandbox = boot(&Machine { kernel_parameters, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(arguments);
    let (reason, message) = refused(&sandbox, &[&container], &before, command, 9).await;
    assert_eq!(reason, "denied_by_guest", "{message}");
}

#[rstest]
#[tokio::test]
async fn caller_without_privileges_is_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).user(65534);
    refused(&sandbox, &[&container], &before, command, 11).await;
}

/// A mount that is removed at the end of its test, even if the test fails.
struct Mount(PathBuf);

impl Mount {
    fn of(volume: &Volume, at: PathBuf) -> Self {
        run("mount", &[volume.name(), at.to_str().unwrap()]);
        Self(at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
