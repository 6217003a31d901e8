//! Races in the guest during a hot-plug: events are lost, the disk appears early, the container
//! ends, two callers send requests.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::{
    Access, AttachRequest, Attachment, DetachRequest, Detachment, Reason, ScsiAddress,
};
use rstest::rstest;
use serde_json::json;
use vm_harness::{Cgroup, ContainerOptions, Machine, Sandbox, Scan, Snapshot, Volume};

use super::{
    MIB, boot, boot_with_faults, sandbox, sandbox_with_faults, set_guest_faults, wait_for_console,
};

#[rstest]
#[tokio::test]
async fn concurrent_hot_plugs_all_succeed(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volumes: Vec<Volume> = (0..4).map(|_| Volume::image(MIB)).collect();
    let paths: Vec<String> = (0..4).map(|number| format!("/dev/volume{number}")).collect();
    let commands: Vec<_> = volumes
        .iter()
        .zip(&paths)
        .map(|(volume, path)| {
            sandbox.hot_plug_command(&container, &[(volume, path.as_str())]).start()
        })
        .collect();
    for command in commands {
        let output = command.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    for (volume, path) in volumes.iter().zip(&paths) {
        assert_eq!(container.read(path, 0..65536).await, volume.bytes(0..65536), "{path}");
    }
}

#[rstest]
#[tokio::test]
async fn concurrent_calls_for_the_same_volume_plug_it_once(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let (first, second) = tokio::join!(command.run(), command.run());
    let mut results =
        [&first, &second].map(|finished| finished.succeeded(sandbox.guest())[0].result.clone());
    results.sort();
    assert_eq!(results, ["attached", "unchanged"]);
}

#[rstest]
#[tokio::test]
async fn volume_behind_an_ata_disk_and_another_controller_is_the_right_one() {
    let other = tempfile::NamedTempFile::new().unwrap();
    other.as_file().set_len(MIB).unwrap();
    let ata_disk = format!(
        "driver=raw,node-name=ata,file.driver=file,file.filename={}",
        other.path().display()
    );
    let devices_before = [
        "-device",
        "piix3-ide,id=ide0",
        "-blockdev",
        &ata_disk,
        "-device",
        "ide-hd,bus=ide0.0,drive=ata",
        "-device",
        "virtio-scsi-pci,id=other",
    ];
    let sandbox = boot(&Machine {
        devices_before: devices_before.map(str::to_owned).to_vec(),
        // Debian's cloud kernel has no ahci; ata_piix is the same libata behind another controller.
        kernel_parameters: vec!["guest.modules=ata_piix".to_owned()],
        scan: Scan::Async,
        ..Machine::default()
    })
    .await;
    let hosts = sandbox.observer().shell("cat /sys/class/scsi_host/host*/proc_name").await;
    assert!(hosts.starts_with("ata_piix"), "the ATA host comes first: {hosts}");
    assert_eq!(
        hosts.matches("Virtio SCSI HBA").count() + hosts.matches("virtio_scsi").count(),
        2,
        "{hosts}"
    );
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    // scsi0 exists, and so it is used.
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(plugged.volume["scsi"]["controller"], "scsi0");
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let second = Volume::image(MIB);
    let command = sandbox
        .hot_plug_command(&container, &[(&second, "/dev/xvdb")])
        .args(["--controller", "other"]);
    let plugged = command.run().await.succeeded(sandbox.guest()).remove(0);
    assert_eq!(plugged.volume["scsi"]["controller"], "other");
    assert_eq!(container.read("/dev/xvdb", 0..65536).await, second.bytes(0..65536));
    let third = Volume::image(MIB);
    let command = sandbox
        .hot_plug_command(&container, &[(&third, "/dev/xvdc")])
        .args(["--controller", "none"]);
    let (_, message) = command.run().await.failed_with(2);
    assert!(message.contains("none"), "{message}");
}

#[rstest]
#[tokio::test]
async fn disk_that_is_visible_before_the_request_is_found_without_an_event() {
    // With scan=async the kernel adds the disk by itself. The fault point gives it time to do so
    // before the request.
    let sandbox = boot_with_faults(&Machine { scan: Scan::Async, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let command = sandbox.ecr_runtime_with_faults("after-device-add=delay:3000");
    let command = command.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]);
    command.run().await.succeeded(sandbox.guest());
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

#[rstest]
#[tokio::test]
async fn disk_is_found_in_sysfs_if_uevents_are_lost(#[future(awt)] sandbox_with_faults: Sandbox) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container().await;
    // A buffer for a few events, and a storm of events that begins before the scan and lasts
    // longer.
    set_guest_faults(
        &sandbox,
        "uevent-receive-buffer=value:2048\nattach-after-lookup=delay:300\nattach-after-scan=delay:1500\n",
    )
    .await;
    let storm =
        "i=0; while [ $i -lt 3000 ]; do echo change > /sys/class/mem/null/uevent; i=$((i+1)); done";
    let observer = sandbox.observer().clone();
    let storm = tokio::spawn(async move { observer.shell(storm).await });
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(plugged.result, "attached");
    storm.await.unwrap();
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let log = sandbox.guest().console().text();
    assert!(log.contains("uevents were lost"), "the overflow must be detected: {log}");
}

#[rstest]
#[case::scan_none(Scan::None)]
#[tokio::test]
async fn disk_that_never_appears_is_a_time_out_and_is_rolled_back(#[case] scan: Scan) {
    let sandbox = boot_with_faults(&Machine { scan, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    set_guest_faults(&sandbox, "scan=skip\n").await;
    let command =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--timeout", "8s"]);
    let finished = command.run().await;
    let (reason, message) = finished.failed_with(7);
    assert_eq!(reason, "timed_out", "{message}");
    assert!(
        finished.elapsed < Duration::from_secs(9),
        "the timeout covers the whole command: {:?}",
        finished.elapsed
    );
    set_guest_faults(&sandbox, "").await;
    before.assert_unchanged(&sandbox, &[&container]).await;
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
}

#[rstest]
#[tokio::test]
async fn container_that_ends_during_a_hot_plug_leaves_nothing(
    #[future(awt)] sandbox_with_faults: Sandbox,
    #[values(false, true)] user_namespace: bool,
) {
    let sandbox = sandbox_with_faults;
    let options = ContainerOptions { user_namespace, ..ContainerOptions::default() };
    let witness = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&witness]).await;
    for point in ["lookup", "scan", "wait", "verify", "node", "filter", "publish"] {
        let container = sandbox.start_container_with(&options).await;
        let volume = Volume::image(MIB);
        let fault = format!("attach-after-{point}=wait\n");
        set_guest_faults(&sandbox, &fault).await;
        let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).start();
        // The fault point prints a line on the console when it is reached.
        wait_for_console(&sandbox, &format!("fault point attach-after-{point}")).await;
        container.kill().await.unwrap();
        set_guest_faults(&sandbox, "").await;
        let finished =
            vm_harness::Finished::new(&command.wait_with_output().await.unwrap(), Duration::ZERO);
        let (reason, message) = finished.failed_with(3);
        assert_eq!(reason, "container_not_running", "{point}: {message}");
        container.remove().await.unwrap();
        before.assert_unchanged(&sandbox, &[&witness]).await;
    }
}

#[rstest]
#[tokio::test]
async fn container_that_ends_while_its_disk_is_awaited_ends_the_wait(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    let witness = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&witness]).await;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    // The scan is skipped, so the event of the disk never comes. The fault point with the delay
    // prints a line before the wait begins.
    set_guest_faults(&sandbox, "scan=skip\nattach-after-scan=delay:1\n").await;
    let command =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(["--timeout", "60s"]);
    let command = command.start();
    wait_for_console(&sandbox, "fault point attach-after-scan").await;
    // System call 7 is poll: now the request waits.
    let asleep = "until grep -q '^7 ' $(grep -lx block-volume /proc/1/task/*/comm | sed s/comm/syscall/); do sleep 0.01; done";
    let wait = sandbox.observer().shell(asleep);
    sandbox
        .guest()
        .wait_for("the request's wait for its disk", Duration::from_secs(10), wait)
        .await
        .unwrap();
    let killed = Instant::now();
    container.kill().await.unwrap();
    let finished =
        vm_harness::Finished::new(&command.wait_with_output().await.unwrap(), Duration::ZERO);
    let took = killed.elapsed();
    let (reason, message) = finished.failed_with(3);
    assert_eq!(reason, "container_not_running", "{message}");
    assert!(
        took < Duration::from_secs(10),
        "the end of the container ends the wait, not the deadline: {took:?}"
    );
    set_guest_faults(&sandbox, "").await;
    container.remove().await.unwrap();
    before.assert_unchanged(&sandbox, &[&witness]).await;
}

#[rstest]
#[tokio::test]
async fn path_that_the_container_takes_during_a_hot_plug_is_left_to_it(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    set_guest_faults(&sandbox, "attach-after-filter=wait\n").await;
    let command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).start();
    wait_for_console(&sandbox, "fault point attach-after-filter").await;
    let error = container.exec_fails(&["ls", "/dev/xvda"]).await;
    assert!(
        error.contains("No such file"),
        "nothing exists at the path before it is usable: {error}"
    );
    container.exec(&["sh", "-c", "echo theirs > /dev/xvda"]).await;
    set_guest_faults(&sandbox, "").await;
    let finished =
        vm_harness::Finished::new(&command.wait_with_output().await.unwrap(), Duration::ZERO);
    let (reason, message) = finished.failed_with(4);
    assert_eq!(reason, "path_taken", "{message}");
    assert_eq!(container.exec(&["cat", "/dev/xvda"]).await, b"theirs\n");
    let left = container.exec(&["sh", "-c", "ls -a /dev | grep ecrblk || true"]).await;
    assert_eq!(String::from_utf8(left).unwrap(), "", "no temporary node is left");
}

#[rstest]
#[tokio::test]
async fn attachment_of_a_caller_that_disconnects_is_rolled_back_and_the_next_succeeds(
    #[future(awt)] sandbox_with_faults: Sandbox,
) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    set_guest_faults(&sandbox, "attach-after-lookup=wait\n").await;
    let mut command = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).start();
    wait_for_console(&sandbox, "fault point attach-after-lookup").await;
    command.kill().await.unwrap();
    set_guest_faults(&sandbox, "").await;
    // No commit can come any more: the guest rolls back by itself.
    wait_for_console(&sandbox, "reason=REASON_CANCELLED").await;
    // The same command finds what QEMU has, and succeeds.
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    let mut monitor = sandbox.monitor().await.unwrap();
    let devices =
        monitor.execute("qom-list", json!({ "path": "/machine/peripheral" })).await.unwrap();
    let ours = devices
        .as_array()
        .unwrap()
        .iter()
        .filter(|device| device["name"].as_str().unwrap().starts_with("ecrblk-"));
    assert_eq!(ours.count(), 1, "{devices}");
    let disks = sandbox.observer().shell("ls /sys/block").await;
    assert_eq!(disks.split_whitespace().collect::<Vec<_>>(), [plugged.guest_device()]);
}

#[rstest]
#[tokio::test]
async fn disk_with_another_serial_is_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = sandbox.ecr_runtime_with_faults("device-serial=value:0123456789abcdef");
    let finished =
        command.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).run().await;
    let (_, message) = finished.failed_with(9);
    assert!(message.contains("0123456789abcdef"), "{message}");
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn guest_rolls_back_a_failed_attach_by_itself(
    #[values(Cgroup::V1, Cgroup::V2)] cgroup: Cgroup,
) {
    let serial = "0123456789abcdef";
    let image = Volume::image(MIB);
    let disk =
        format!("driver=raw,node-name=volume,file.driver=file,file.filename={}", image.name());
    let device = format!("scsi-hd,bus=scsi0.0,scsi-id=200,lun=7,serial={serial},drive=volume");
    let controller =
        ["-device", "virtio-scsi-pci,id=scsi0", "-blockdev", &disk, "-device", &device];
    let controller = controller.map(str::to_owned).to_vec();
    let sandbox = boot_with_faults(&Machine { cgroup, controller, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let attachment = Attachment {
        container_id: container.id().to_owned(),
        address: Some(ScsiAddress { target: 200, lun: 7, ..Default::default() }).into(),
        serial: serial.to_owned(),
        size: MIB,
        path: "/dev/xvda".to_owned(),
        access: Access::ACCESS_READ_WRITE.into(),
        mode: 0o660,
        ..Default::default()
    };
    let request = AttachRequest {
        attachments: vec![attachment.clone()],
        timeout_ms: 20_000,
        ..Default::default()
    };
    let detachment = Detachment { attachment: Some(attachment).into(), ..Default::default() };
    let detach = DetachRequest {
        detachments: vec![detachment],
        timeout_ms: 20_000,
        ..DetachRequest::default()
    };
    let service = sandbox.block_volume_service().await.unwrap();
    // A device right that the pod gets once stays: it must exist before the comparison.
    let attached = service.attach(sandbox.agent().context(), &request).await.unwrap();
    assert!(attached.failure.is_none(), "{attached}");
    let detached = service.detach(sandbox.agent().context(), &detach).await.unwrap();
    assert!(detached.failure.is_none(), "{detached}");
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for point in ["uevent-socket", "lookup", "scan", "wait", "verify", "node", "filter", "publish"]
    {
        // QEMU keeps its disk here, so only the plugin can have removed it from the guest.
        set_guest_faults(&sandbox, &format!("attach-after-{point}=error\n")).await;
        let answer = service.attach(sandbox.agent().context(), &request).await.unwrap();
        assert!(answer.failure.is_some() && answer.failure.undone, "{point}: {answer}");
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    set_guest_faults(&sandbox, "").await;
    let attached = service.attach(sandbox.agent().context(), &request).await.unwrap();
    assert!(attached.failure.is_none(), "{attached}");
    assert_eq!(container.read("/dev/xvda", 0..65536).await, image.bytes(0..65536));
}

#[rstest]
#[tokio::test]
async fn disk_of_another_size_is_refused(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let mut attachment = plugged.attachment();
    attachment.size += 512;
    let request =
        AttachRequest { attachments: vec![attachment], timeout_ms: 10_000, ..Default::default() };
    let service = sandbox.block_volume_service().await.unwrap();
    let answer = service.attach(sandbox.agent().context(), &request).await.unwrap();
    drop(service);
    assert_eq!(
        answer.failure.reason.enum_value().unwrap(),
        Reason::REASON_IDENTITY_MISMATCH,
        "{answer}"
    );
    assert!(answer.failure.message.contains("size"), "{answer}");
    // The disk was attached before, so the refusal must not detach it.
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}
