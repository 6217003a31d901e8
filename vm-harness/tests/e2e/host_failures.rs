//! A failure at every step of the host's part: everything is undone, and the next call works.

use rstest::rstest;
use vm_harness::{Sandbox, Snapshot, Volume};

use super::{MIB, sandbox, sandbox_with_faults, set_guest_faults};

#[rstest]
#[tokio::test]
async fn failure_after_each_step_of_the_host_is_undone(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for point in [
        "after-probe",
        "after-add-fd",
        "after-blockdev-add",
        "after-device-add",
        "after-attach",
        "after-outcome",
    ] {
        let command = sandbox.ecr_runtime_with_faults(&format!("{point}=error"));
        let finished = command.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).run().await;
        let (_, message) = finished.failed_with(1);
        assert!(message.contains(point), "{message}");
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{point}: the host can claim the device again");
    }
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert!(!claim_is_free(&volume), "QEMU holds the claim while the volume is plugged");
}

#[rstest]
#[tokio::test]
async fn failure_after_each_step_of_the_guest_is_undone(#[future(awt)] sandbox_with_faults: Sandbox) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container().await;
    let volumes = [Volume::image(MIB), Volume::image(MIB)];
    let pairs = [(&volumes[0], "/dev/xvda"), (&volumes[1], "/dev/xvdb")];
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for point in ["uevent-socket", "lookup", "scan", "wait", "verify", "node", "filter", "publish"] {
        set_guest_faults(&sandbox, &format!("attach-after-{point}=error\n")).await;
        let finished = sandbox.hot_plug_command(&container, &pairs).run().await;
        assert_ne!(finished.status, 0, "{point}: {}", finished.stdout);
        assert!(finished.stdout.contains(point), "{}", finished.stdout);
        set_guest_faults(&sandbox, "").await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    sandbox.hot_plug_command(&container, &pairs).run().await.succeeded(sandbox.guest());
}

#[rstest]
#[tokio::test]
async fn killed_call_is_completed_or_undone_by_the_same_call(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    for (number, point) in
        ["after-add-fd", "after-blockdev-add", "after-device-add", "after-attach", "after-outcome"]
            .iter()
            .enumerate()
    {
        let volume = Volume::loop_device(MIB);
        let path = format!("/dev/volume{number}");
        let command = sandbox.ecr_runtime_with_faults(&format!("{point}=kill"));
        let killed = command.hot_plug(sandbox.id(), container.id(), &[(&volume, &path)]).run().await;
        assert_eq!(killed.status, 128 + 9, "{point}");
        sandbox.hot_plug(&container, &volume, &path).await;
        assert_eq!(container.read(&path, 0..65536).await, volume.bytes(0..65536), "{point}");
    }
}

#[rstest]
#[tokio::test]
async fn undo_that_fails_is_told_as_incomplete(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let command = sandbox.ecr_runtime_with_faults("after-device-add=error,undo-device-del=error");
    let finished = command.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).run().await;
    let (reason, message) = finished.failed_with(8);
    assert_eq!(reason, "incomplete", "{message}");
    // The same command finds what was left, and ends attached.
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

#[rstest]
#[tokio::test]
async fn terminated_call_is_undone_and_ends_with_the_signal(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = sandbox.ecr_runtime_with_faults("after-device-add=delay:20000");
    let command = command.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).start();
    let mut monitor = sandbox.monitor().await.unwrap();
    loop {
        let arguments = serde_json::json!({ "path": "/machine/peripheral" });
        let devices = monitor.execute("qom-list", arguments).await.unwrap();
        if devices.to_string().contains("ecrblk-") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    drop(monitor);
    let process = nix::unistd::Pid::from_raw(i32::try_from(command.id().unwrap()).unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).unwrap();
    let finished =
        vm_harness::Finished::new(&command.wait_with_output().await.unwrap(), std::time::Duration::ZERO);
    assert_eq!(finished.status, 128 + 15, "{}{}", finished.stdout, finished.stderr);
    before.assert_unchanged(&sandbox, &[&container]).await;
}

fn claim_is_free(volume: &Volume) -> bool {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(volume.path()).is_ok()
}
