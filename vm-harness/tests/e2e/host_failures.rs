//! A failure at every step on the host: everything is rolled back, and the next call works.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;
use vm_harness::{Cgroup, Finished, Machine, Sandbox, Scan, Snapshot, Volume};

use super::{MIB, boot_with_faults, sandbox, set_guest_faults};

#[rstest]
#[tokio::test]
async fn failure_after_each_step_of_the_host_is_rolled_back(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for point in [
        "after-preflight",
        "after-start",
        "after-add-fd",
        "after-blockdev-add",
        "after-ready",
        "after-device-add",
        "after-go",
        "after-prepared",
        "after-record",
        "after-attach",
        "after-commit",
    ] {
        let command = sandbox.ecr_runtime_with_faults(&format!("{point}=error"));
        let finished =
            command.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).run().await;
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
async fn failure_after_each_step_of_the_guest_is_rolled_back(
    #[values((Cgroup::V1, Scan::None), (Cgroup::V2, Scan::Async))] (cgroup, scan): (Cgroup, Scan),
) {
    let sandbox = boot_with_faults(&Machine { cgroup, scan, ..Machine::default() }).await;
    let container = sandbox.start_container().await;
    let volumes = [Volume::image(MIB), Volume::image(MIB)];
    let pairs = [(&volumes[0], "/dev/xvda"), (&volumes[1], "/dev/xvdb")];
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for point in ["uevent-socket", "lookup", "scan", "wait", "verify", "node", "filter", "publish"]
    {
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
async fn killed_call_is_recovered_by_the_same_call(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    for (number, point) in [
        "after-add-fd",
        "after-ready",
        "after-device-add",
        "after-prepared",
        "after-attach",
        "after-commit",
    ]
    .iter()
    .enumerate()
    {
        let volume = Volume::loop_device(MIB);
        let path = format!("/dev/volume{number}");
        let command = sandbox.ecr_runtime_with_faults(&format!("{point}=kill"));
        let killed =
            command.hot_plug(sandbox.id(), container.id(), &[(&volume, &path)]).run().await;
        assert_eq!(killed.status, 128 + 9, "{point}");
        sandbox.hot_plug(&container, &volume, &path).await;
        assert_eq!(container.read(&path, 0..65536).await, volume.bytes(0..65536), "{point}");
    }
}

#[rstest]
#[tokio::test]
async fn failed_rollback_is_reported_as_incomplete(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    // QEMU is stopped, and the guest with it, when the device exists and the guest has not been
    // asked yet.
    let command = sandbox.ecr_runtime_with_faults("after-device-add=delay:2000");
    let command = command
        .hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")])
        .args(["--timeout", "10s"]);
    let command = command.start();
    wait_for_device(&sandbox).await;
    let qemu = Pid::from_raw(i32::try_from(sandbox.guest().qemu_id()).unwrap());
    kill(qemu, Signal::SIGSTOP).unwrap();
    let finished = Finished::new(&command.wait_with_output().await.unwrap(), Duration::ZERO);
    kill(qemu, Signal::SIGCONT).unwrap();
    let (reason, message) = finished.failed_with(8);
    assert_eq!(reason, "incomplete", "{message}");
    // The same command finds what was left, and succeeds.
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

#[rstest]
#[case::terminate(Signal::SIGTERM)]
#[case::interrupt(Signal::SIGINT)]
#[case::hang_up(Signal::SIGHUP)]
#[tokio::test]
async fn call_that_is_ended_by_a_signal_is_rolled_back_first(
    #[future(awt)] sandbox: Sandbox,
    #[case] signal: Signal,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::image(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let command = sandbox.ecr_runtime_with_faults("after-device-add=delay:20000");
    let command = command.hot_plug(sandbox.id(), container.id(), &[(&volume, "/dev/xvda")]).start();
    wait_for_device(&sandbox).await;
    kill(Pid::from_raw(i32::try_from(command.id().unwrap()).unwrap()), signal).unwrap();
    let finished = Finished::new(&command.wait_with_output().await.unwrap(), Duration::ZERO);
    finished.failed_with(128 + signal as i32);
    before.assert_unchanged(&sandbox, &[&container]).await;
}

/// Waits until QEMU has a device that `ecr-runtime` created.
async fn wait_for_device(sandbox: &Sandbox) {
    let mut monitor = sandbox.monitor().await.unwrap();
    let deadline = Instant::now() + sandbox.guest().scaled(Duration::from_secs(10));
    while !monitor
        .execute("qom-list", serde_json::json!({ "path": "/machine/peripheral" }))
        .await
        .unwrap()
        .to_string()
        .contains("ecrblk-")
    {
        assert!(Instant::now() < deadline, "no device of ours appeared");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the host can claim the device.
pub(crate) fn claim_is_free(volume: &Volume) -> bool {
    volume.check_claimable().is_ok()
}
