//! The main function: a volume appears in a running container, and its data is correct.

use std::time::Duration;

use rstest::rstest;
use serde_json::Value;
use vm_harness::{
    Cgroup, Container, ContainerOptions, LoopOptions, Machine, Plugged, Sandbox, Scan, Snapshot,
    Volume, random_bytes,
};

use super::{MIB, boot, sandbox};

/// Compares what the container reads with the volume on the host, then writes in the container and
/// compares again.
async fn assert_same_bytes_both_ways(container: &Container, volume: &Volume, path: &str) {
    let end = volume.size();
    for range in [0..4096, end / 2..end / 2 + 65536, end - 4096..end] {
        assert_eq!(
            container.read(path, range.clone()).await,
            volume.bytes(range),
            "host to container"
        );
    }
    let fresh = random_bytes(128 * 1024);
    container.write(path, MIB, &fresh).await;
    assert_eq!(volume.bytes(MIB..MIB + 128 * 1024), fresh, "container to host");
}

/// Returns `major:minor`, type, permission bits and owner of a node as the container sees them.
async fn node(container: &Container, path: &str) -> (String, String, String, String) {
    let text = container.exec(&["stat", "-c", "%t:%T %F %a %u:%g", path]).await;
    let text = String::from_utf8(text).unwrap();
    let (number, rest) = text.trim().split_once(' ').unwrap();
    let (major, minor) = number.split_once(':').unwrap();
    let decimal = |hex: &str| u32::from_str_radix(hex, 16).unwrap();
    let number = format!("{}:{}", decimal(major), decimal(minor));
    let (rest, owner) = rest.rsplit_once(' ').unwrap();
    let (kind, mode) = rest.rsplit_once(' ').unwrap();
    (number, kind.to_owned(), mode.to_owned(), owner.to_owned())
}

#[rstest]
#[case::loop_device(Volume::loop_device(16 * MIB))]
#[case::raw_image(Volume::image(16 * MIB))]
#[tokio::test]
async fn volume_is_read_and_written_by_a_running_container(
    #[future(awt)] sandbox: Sandbox,
    #[case] volume: Volume,
) {
    let container = sandbox.start_container().await;
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(plugged.result, "attached");
    let (number, kind, mode, owner) = node(&container, "/dev/xvda").await;
    assert_eq!(number, plugged.device_number());
    assert_eq!(
        (kind.as_str(), mode.as_str(), owner.as_str()),
        ("block special file", "660", "0:0")
    );
    assert_same_bytes_both_ways(&container, &volume, "/dev/xvda").await;
}

#[rstest]
#[tokio::test]
async fn volume_works_with_each_cgroup_version_and_scan_mode(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
    #[values(Scan::None, Scan::Async)] scan: Scan,
) {
    let sandbox = boot(&Machine { cgroup, scan, ..Machine::default() }).await;
    let mode = sandbox.observer().shell("cat /sys/module/scsi_mod/parameters/scan").await;
    assert_eq!(
        mode.trim() == "none",
        scan == Scan::None,
        "the guest has the scan mode of the test"
    );
    let container = sandbox.start_container().await;
    let sibling = sandbox.start_container().await;
    let volume = Volume::loop_device(8 * MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_same_bytes_both_ways(&container, &volume, "/dev/xvda").await;
    let expected = if cgroup == Cgroup::V1 { "v1" } else { "none" };
    assert_eq!(plugged.text("device_filter"), expected);
    if cgroup == Cgroup::V1 {
        // The sibling may create such a node, but may not open it.
        let (major, minor) = plugged.device_number().split_once(':').unwrap();
        sibling.exec(&["mknod", "/dev/theirs", "b", major, minor]).await;
        let error = sibling.exec_fails(&["dd", "if=/dev/theirs", "of=/dev/null", "count=1"]).await;
        assert!(error.contains("Operation not permitted"), "{error}");
    }
}

#[rstest]
#[tokio::test]
async fn sixteen_volumes_in_one_call_have_the_correct_data(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volumes: Vec<Volume> = (0..16).map(|_| Volume::image(2 * MIB)).collect();
    let paths: Vec<String> = (0..16).map(|number| format!("/dev/volume{number}")).collect();
    let pairs: Vec<(&Volume, &str)> =
        volumes.iter().zip(&paths).map(|(volume, path)| (volume, path.as_str())).collect();
    let plugged =
        sandbox.hot_plug_command(&container, &pairs).run().await.succeeded(sandbox.guest());
    assert_eq!(plugged.len(), 16);
    for ((volume, path), plugged) in pairs.iter().zip(&plugged) {
        assert_eq!(
            plugged.text("device_path"),
            *path,
            "volumes are reported in the order of the call"
        );
        assert_eq!(container.read(path, 0..65536).await, volume.bytes(0..65536), "{path}");
    }
}

#[rstest]
#[tokio::test]
async fn repeated_call_is_unchanged_and_other_options_are_a_conflict(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let other = sandbox.start_container().await;
    let volume = Volume::loop_device(4 * MIB);
    let first = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let containers = [&container, &other];
    let before = Snapshot::of(&sandbox, &containers).await;
    let second = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(second, Plugged { result: "unchanged".to_owned(), ..first.clone() });
    let same = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    for (what, expected, command) in [
        ("read-only", "other_options", same.clone().args(["--read-only"])),
        ("owner", "other_options", same.clone().args(["--uid", "7"])),
        ("mode", "other_options", same.clone().args(["--mode", "0600"])),
        ("path", "volume_taken", sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvdb")])),
        ("container", "volume_taken", sandbox.hot_plug_command(&other, &[(&volume, "/dev/xvda")])),
    ] {
        let (reason, message) = command.run().await.failed_with(4);
        assert_eq!(reason, expected, "{what}: {message}");
    }
    before.assert_unchanged(&sandbox, &containers).await;
    assert_same_bytes_both_ways(&container, &volume, "/dev/xvda").await;
}

#[rstest]
#[tokio::test]
async fn read_only_volume_cannot_be_written_by_anyone_in_the_guest(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
) {
    let sandbox = boot(&Machine { cgroup, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device_with(
        4 * MIB,
        LoopOptions { read_only: true, ..LoopOptions::default() },
    );
    let command =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--read-only"]);
    let plugged = command.run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(plugged.volume["read_only"], Value::Bool(true));
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let before = volume.checksum();
    let error = container
        .exec_fails(&["dd", "if=/dev/zero", "of=/dev/xvda", "count=1", "conv=notrunc"])
        .await;
    assert!(error.contains("ermitted") || error.contains("Read-only"), "{error}");
    let read_only =
        sandbox.observer().shell(&format!("cat /sys/block/{}/ro", plugged.guest_device())).await;
    assert_eq!(read_only.trim(), "1", "the guest's disk itself is read-only");
    if cgroup == Cgroup::V1 {
        let rules = &Snapshot::of(&sandbox, &[&container]).await.device_filters[container.id()];
        let number = plugged.device_number();
        let ours: Vec<_> = rules.iter().filter(|rule| rule.contains(number)).collect();
        assert_eq!(
            ours,
            [&format!("b {number} r"), &format!("b {number} r")],
            "the pod's right and the container's"
        );
    }
    assert_eq!(volume.checksum(), before);
}

#[rstest]
#[tokio::test]
async fn node_has_the_requested_owner_and_mode(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(2 * MIB);
    let options = ["--uid", "1000", "--gid", "2000", "--mode", "0666"];
    let finished =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(options).run().await;
    finished.succeeded(sandbox.guest());
    let (_, _, mode, owner) = node(&container, "/dev/xvda").await;
    assert_eq!((mode.as_str(), owner.as_str()), ("666", "1000:2000"));
}

#[rstest]
#[tokio::test]
async fn sector_size_of_four_kib_is_kept(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume =
        Volume::loop_device_with(8 * MIB, LoopOptions { sector: 4096, ..LoopOptions::default() });
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let queue = format!(
        "cd /sys/block/{}/queue && cat logical_block_size physical_block_size",
        plugged.guest_device()
    );
    assert_eq!(sandbox.observer().shell(&queue).await, "4096\n4096\n");
    assert_same_bytes_both_ways(&container, &volume, "/dev/xvda").await;
}

#[rstest]
#[tokio::test]
async fn output_describes_the_volume(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(2 * MIB);
    let finished = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).run().await;
    finished.succeeded(sandbox.guest());
    let json = finished.json();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["command"], "hot-plug");
    assert_eq!(json["result"], "attached");
    let found = &json["volumes"][0];
    assert_eq!(found["sandbox"], sandbox.id());
    assert_eq!(found["container"], container.id());
    assert_eq!(found["device_path"], "/dev/xvda");
    assert_eq!(found["source"], volume.name());
    assert_eq!(found["size"], volume.size());
    assert_eq!(found["read_only"], false);
    assert_eq!(found["node"], "bind");
    let lun = found["scsi"]["lun"].as_u64().unwrap();
    let target = found["scsi"]["target"].as_u64().unwrap();
    assert!(
        (1..=255).contains(&lun) && (192..=255).contains(&target),
        "an address that Kata never uses: {found}"
    );
    let name = found["guest_device"].as_str().unwrap();
    let number = sandbox.observer().shell(&format!("cat /sys/block/{name}/dev")).await;
    assert_eq!(found["device_number"], number.trim());
    let id = found["id"].as_str().unwrap();
    let serial = sandbox
        .observer()
        .shell(&format!("tr -cd '[:alnum:]' < /sys/block/{name}/device/vpd_pg80"))
        .await;
    assert!(serial.ends_with(id), "the volume ID {id} is the disk's serial number {serial}");
    assert!(json["timings_us"].as_object().is_some_and(|stages| !stages.is_empty()), "{json}");
}

#[rstest]
#[tokio::test]
async fn agent_stays_in_its_own_mount_namespace_and_leaves_no_thread(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let plug = async |path: &str| {
        let volume = Volume::image(MIB);
        sandbox.hot_plug(&container, &volume, path).await;
        volume
    };
    // While there is a volume the plugin keeps a descriptor.
    let mut volumes = vec![plug("/dev/volume0").await];
    let before = Snapshot::of(&sandbox, &[&container]).await.agent;
    assert_eq!(before.namespaces.len(), 1);
    for path in ["/dev/volume1", "/dev/volume2"] {
        volumes.push(plug(path).await);
    }
    assert_eq!(before.settled(&sandbox).await.unwrap(), before);
}

#[rstest]
#[tokio::test]
async fn full_host_file_system_is_an_error_in_the_container_and_does_not_pause_the_vm(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let full = FullFileSystem::mount();
    let volume = full.sparse_image(64 * MIB);
    let plugged = sandbox.ecr_runtime().args([
        "block-volume",
        "hot-plug",
        "--output",
        "json",
        "--sandbox",
        sandbox.id(),
        "--container",
        container.id(),
        "--block-volume",
        &volume,
        "--device-path",
        "/dev/xvda",
    ]);
    plugged.run().await.succeeded(sandbox.guest());
    let write =
        ["dd", "if=/dev/urandom", "of=/dev/xvda", "bs=1M", "count=48", "conv=notrunc,fsync"];
    let write = container.exec_fails(&write);
    let error =
        sandbox.guest().wait_for("the end of dd", Duration::from_secs(10), write).await.unwrap();
    assert!(error.contains("Input/output error") || error.contains("No space left"), "{error}");
    let mut monitor = sandbox.monitor().await.unwrap();
    let status = monitor.execute("query-status", serde_json::json!({})).await.unwrap();
    assert_eq!(status["status"], "running", "the sandbox continues to run");
    assert_eq!(container.exec(&["echo", "alive"]).await, b"alive\n");
    drop(sandbox);
}

/// A file system of 16 MiB.
struct FullFileSystem {
    directory: tempfile::TempDir,
}

impl FullFileSystem {
    fn mount() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "small"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "end-to-end tests run as root");
        Self { directory }
    }

    fn sparse_image(&self, size: u64) -> String {
        let path = self.directory.path().join("volume.img");
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for FullFileSystem {
    fn drop(&mut self) {
        // Lazy unmount: QEMU may still have the image open.
        let _ =
            std::process::Command::new("umount").arg("--lazy").arg(self.directory.path()).status();
    }
}

#[rstest]
#[tokio::test]
async fn unique_prefixes_of_ids_are_accepted_and_the_sandbox_is_optional(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let plug = |path: &'static str| {
        sandbox.ecr_runtime().args([
            "block-volume",
            "hot-plug",
            "--output",
            "json",
            "--container",
            &container.id()[..10],
            "--block-volume",
            volume.name(),
            "--device-path",
            path,
        ])
    };
    let first = plug("/dev/xvda").run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(first.text("container"), container.id());
    let second = plug("/dev/xvda").args(["--sandbox", &sandbox.id()[..8]]).run().await;
    assert_eq!(second.succeeded(sandbox.guest())[0].result, "unchanged");
}

#[tokio::test]
async fn disk_that_was_not_requested_is_not_scanned() {
    let other = Volume::image(MIB);
    let disk =
        format!("driver=raw,node-name=other,file.driver=file,file.filename={}", other.name());
    let controller = [
        "-device",
        "virtio-scsi-pci,id=scsi0",
        "-blockdev",
        &disk,
        "-device",
        "scsi-hd,bus=scsi0.0,scsi-id=3,lun=1,drive=other",
    ];
    let sandbox =
        boot(&Machine { controller: controller.map(str::to_owned).to_vec(), ..Machine::default() })
            .await;
    let disks = async || sandbox.observer().shell("ls /sys/block").await;
    assert_eq!(disks().await, "", "scsi_mod.scan=none: the guest does not scan by itself");
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(
        disks().await.trim(),
        plugged.guest_device(),
        "only the address of the volume is scanned"
    );
}

#[rstest]
#[tokio::test]
async fn node_is_not_visible_in_a_second_container(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container_with(&ContainerOptions::default()).await;
    let sibling = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let error = sibling.exec_fails(&["ls", "/dev/xvda"]).await;
    assert!(error.contains("No such file"), "{error}");
}

#[rstest]
#[tokio::test]
async fn extra_monitor_is_preferred_to_the_socket_that_the_shim_holds(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let vm = sandbox.run_directory().vm();
    std::os::unix::fs::symlink(vm.join("harness.sock"), vm.join("qmp.sock")).unwrap();
    // A stock shim holds the socket like this.
    let shim = std::os::unix::net::UnixStream::connect(vm.join("qmp.sock")).unwrap();
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
    drop(shim);
}

#[rstest]
#[tokio::test]
async fn qemu_that_was_started_without_the_wrapper_is_reached_by_its_own_socket() {
    let sandbox = boot(&Machine { wrapped: false, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    assert!(!sandbox.run_directory().vm().join("extra-monitor.sock").exists());
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
}

#[rstest]
#[tokio::test]
async fn sandbox_of_the_rust_runtime_is_found_with_the_monitor_of_the_wrapper(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let run_dir = tempfile::tempdir().unwrap();
    let state = run_dir.path().join(sandbox.id());
    std::fs::create_dir(&state).unwrap();
    let shim = sandbox.run_directory().sandbox_state().join("shim-monitor.sock");
    std::os::unix::fs::symlink(shim, state.join("shim-monitor.sock")).unwrap();
    let command =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).run_dir(run_dir.path());
    // The runtime writes its state when the sandbox has started.
    let (reason, message) = command.run().await.failed_with(14);
    assert_eq!(reason, "sandbox_starting", "{message}");
    std::fs::write(state.join("state.json"), "{}").unwrap();
    let (reason, message) = command.run().await.failed_with(14);
    assert_eq!(reason, "qmp_unreachable", "{message}");
    let monitor = state.join("extra-monitor.sock");
    std::os::unix::fs::symlink(sandbox.qmp_socket(), monitor).unwrap();
    command.run().await.succeeded(sandbox.guest());
    assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
}
