//! Each kind of bad input has its own reason and exit code, and changes nothing in QEMU. (What can
//! be checked with the command line and the IDs alone has unit tests beside the code.)

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, time::Duration};

use crate::common::{
    Host,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::Reason;
use host_trigger::output::envelope::Outcome;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;

const MIB: u64 = 1 << 20;

async fn assert_refused(
    host: &mut Host,
    volume: &Path,
    more: &[&str],
    reason: &str,
    exit_code: u8,
) {
    let before = host.snapshot().await;
    let ran = host.plug(volume, "/dev/xvda", more).await;
    ran.assert_fails(reason, exit_code);
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
}

#[rstest]
#[case(&["--container", "c9", "--sandbox", "s1"], "container_not_found", 3)]
#[case(&["--container", "c", "--sandbox", "s1"], "ambiguous_id", 2)]
#[case(&["--container", "c1", "--sandbox", "s9"], "sandbox_not_found", 3)]
#[case(&["--container", "c1/../c2", "--sandbox", "s1"], "invalid_id", 2)]
#[case(&["--container", "s1", "--sandbox", "s1"], "pause_container", 2)]
#[case(&["--agent", "tcp://localhost:1"], "invalid_agent_address", 2)]
#[case(&["--controller", "scsi9"], "unknown_controller", 2)]
#[case(&["--timeout", "never"], "usage", 2)]
#[case(&["--mode", "1777"], "usage", 2)]
#[case(&["--uid", "4294967295"], "usage", 2)]
#[case(&["--gid", "-1"], "usage", 2)]
#[tokio::test]
async fn a_wrong_command_line_changes_nothing(
    #[case] more: &[&str],
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    assert_refused(&mut host, image.path(), more, reason, exit_code).await;
}

#[rstest]
#[case("dev/xvda")]
#[case("/dev/../etc/x")]
#[case("/dev/")]
#[case("/dev/.ecrblk-0123456789abcdef")]
#[tokio::test]
async fn a_device_path_must_be_absolute_and_normalized(#[case] path: &str) {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), path, &[]).await.assert_fails("invalid_device_path", 2);
}

#[rstest]
#[case("/nonexistent/volume", "source_not_found", 3)]
#[case("/dev", "source_kind", 6)]
#[case("/dev/null", "source_kind", 6)]
#[tokio::test]
async fn a_source_that_is_neither_device_nor_image_is_refused(
    #[case] volume: &str,
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    assert_refused(&mut host, Path::new(volume), &[], reason, exit_code).await;
}

#[tokio::test]
async fn an_empty_or_unaligned_source_is_refused() {
    let mut host = Host::boot().await;
    assert_refused(&mut host, Image::of(0).path(), &[], "source_empty", 6).await;
    assert_refused(&mut host, Image::of(513).path(), &[], "source_unaligned", 6).await;
    let volume = Loop::of(MIB);
    let detached = volume.path().to_owned();
    drop(volume);
    let ran = host.plug(&detached, "/dev/xvda", &[]).await;
    // Another test may have attached this loop device in the meantime.
    assert_eq!(ran.failure().exit_code, 6, "{ran:?}");
}

#[tokio::test]
async fn a_read_only_device_is_refused_for_writing() {
    let mut host = Host::boot().await;
    let volume = Loop::with(MIB, &["--read-only"]);
    assert_refused(&mut host, volume.path(), &[], "source_read_only", 6).await;
    assert!(!volume.is_claimed());
}

#[tokio::test]
async fn a_mounted_device_is_refused_with_its_mount_point() {
    let mut host = Host::boot().await;
    let volume = Loop::of(16 * MIB);
    let mount_point = tempfile::tempdir().unwrap();
    let status = Command::new("mkfs.ext4").args(["-q"]).arg(volume.path()).status().unwrap();
    assert!(status.success());
    let status = Command::new("mount").arg(volume.path()).arg(mount_point.path()).status().unwrap();
    assert!(status.success());
    let before = host.snapshot().await;
    let ran = host.plug(volume.path(), "/dev/xvda", &[]).await;
    let status = Command::new("umount").arg(mount_point.path()).status().unwrap();
    assert!(status.success());
    ran.assert_fails("source_mounted", 6);
    assert!(ran.stdout.contains(mount_point.path().to_str().unwrap()), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_claimed_device_is_refused_with_the_claiming_process() {
    use std::os::unix::fs::OpenOptionsExt;
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    let claim =
        fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(volume.path()).unwrap();
    let before = host.snapshot().await;
    let ran = host.plug(volume.path(), "/dev/xvda", &[]).await;
    drop(claim);
    ran.assert_fails("source_held", 6);
    assert!(ran.stdout.contains(&format!("process {}", std::process::id())), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn an_image_behind_a_loop_device_is_held_by_the_loop_device() {
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    let backing =
        fs::read_to_string(format!("/sys/block/{}/loop/backing_file", name(volume.path())))
            .unwrap();
    assert_refused(&mut host, Path::new(backing.trim_end()), &[], "source_held", 6).await;
}

fn name(device: &Path) -> &str {
    device.file_name().unwrap().to_str().unwrap()
}

#[tokio::test]
async fn a_volume_of_another_vm_is_held_by_the_qemu_of_that_vm() {
    let mut host = Host::boot().await;
    let other = Host::boot().await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    for volume in [device.path(), image.path()] {
        let path = format!("/dev/{}", name(volume));
        other.plug(volume, &path, &[]).await.report();
        let ran = host.plug(volume, &path, &[]).await;
        ran.assert_fails("source_held", 6);
        assert!(ran.stdout.contains(&format!("process {} (qemu-", other.qemu.id())), "{ran:?}");
    }
    assert_eq!(host.snapshot().await["query-fdsets"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_taken_path_is_refused_before_anything_changes() {
    let mut host = Host::boot().await;
    host.agent.taken_paths.lock().unwrap().push("/dev/xvda".into());
    assert_refused(&mut host, Image::of(MIB).path(), &[], "path_taken", 4).await;
}

#[rstest]
#[case(Reason::REASON_CONTAINER_NOT_FOUND, "container_not_found", 3)]
#[case(Reason::REASON_CONTAINER_NOT_RUNNING, "container_not_running", 3)]
#[case(Reason::REASON_DENIED, "denied_by_guest", 9)]
#[tokio::test]
async fn a_refusal_of_the_guest_at_probe_changes_nothing(
    #[case] refused: Reason,
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    *host.agent.probe_failure.lock().unwrap() = Some(refused);
    assert_refused(&mut host, Image::of(MIB).path(), &[], reason, exit_code).await;
}

#[tokio::test]
async fn each_kind_of_unusable_agent_has_its_own_reason() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    *host.agent.api_level.lock().unwrap() = 2;
    assert_refused(&mut host, image.path(), &[], "api_level", 12).await;
    host.agent.stop().await;
    assert_refused(&mut host, image.path(), &[], "agent_unreachable", 14).await;
    host.agent.start_without_plugin().await;
    assert_refused(&mut host, image.path(), &[], "no_plugin", 10).await;
    fs::write(host.path("sbs/s1/persist.json"), "{}").unwrap();
    assert_refused(&mut host, image.path(), &[], "agent_unknown", 14).await;
}

#[tokio::test]
async fn an_agent_that_does_not_reply_times_out() {
    let mut host = Host::boot().await;
    let silent = host.path("silent.sock");
    // The kernel accepts the connection; no process reads from it.
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let image = Image::of(MIB);
    let address = format!("hvsock://{}:1024", silent.display());
    assert_refused(
        &mut host,
        image.path(),
        &["--agent", &address, "--timeout", "500ms"],
        "timed_out",
        7,
    )
    .await;
    let address = format!("unix://{}", silent.display());
    assert_refused(
        &mut host,
        image.path(),
        &["--agent", &address, "--timeout", "500ms"],
        "timed_out",
        7,
    )
    .await;
}

#[rstest]
#[case(&[], "no_controller", 10)]
#[case(&["-device", "virtio-scsi-pci,id=a", "-device", "virtio-scsi-pci,id=b"], "ambiguous_controller", 2)]
#[tokio::test]
async fn a_vm_without_exactly_one_controller_is_refused(
    #[case] devices: &[&str],
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot_with(devices).await;
    assert_refused(&mut host, Image::of(MIB).path(), &[], reason, exit_code).await;
}

#[tokio::test]
async fn the_named_controller_is_used() {
    let devices = ["-device", "virtio-scsi-pci,id=a", "-device", "virtio-scsi-pci,id=b"];
    let host = Host::boot_with(&devices).await;
    let report =
        host.plug(Image::of(MIB).path(), "/dev/xvda", &["--controller", "b"]).await.report();
    assert_eq!(report.body.volumes[0].scsi.controller, "b");
    let attached = host.agent.attached.lock().unwrap();
    assert_eq!(attached.values().next().unwrap().controller, "0000:00:02.0");
}

#[tokio::test]
async fn a_repeated_hot_plug_finds_the_volume_on_its_controller() {
    let mut host = Host::boot_with(&[
        "-device",
        "virtio-scsi-pci,id=scsi0",
        "-device",
        "virtio-scsi-pci,id=b",
    ])
    .await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &["--controller", "b"]).await.report();
    let before = host.snapshot().await;
    let again = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(
        (again.result, again.body.volumes[0].scsi.controller.as_str()),
        (Outcome::Unchanged, "b")
    );
    assert_eq!(
        host.agent.attached.lock().unwrap().values().next().unwrap().controller,
        "0000:00:02.0"
    );
    host.plug(image.path(), "/dev/xvda", &["--controller", "scsi0"])
        .await
        .assert_fails("other_options", 4);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_socket_held_by_another_client_is_reported_within_three_seconds() {
    let mut host = Host::boot().await;
    let deadline = host_trigger::Deadline::after(Duration::from_secs(10));
    let held = block_volume_qmp::Qmp::connect(host.path("vm/s1/qmp.sock"), deadline).await.unwrap();
    let image = Image::of(MIB);
    let before = host.snapshot().await;
    let ran = host.plug(image.path(), "/dev/xvda", &[]).await;
    ran.assert_fails("qmp_held", 13);
    assert!(ran.took < Duration::from_secs(3), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
    drop(held);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_stopped_qemu_is_reported_as_a_timeout_and_not_as_another_client() {
    let host = Host::boot().await;
    let pid = Pid::from_raw(i32::try_from(host.qemu.id()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let ran = host.plug(Image::of(MIB).path(), "/dev/xvda", &[]).await;
    kill(pid, Signal::SIGCONT).unwrap();
    ran.assert_fails("timed_out", 7);
    assert!(ran.took < Duration::from_secs(3), "{ran:?}");
}

#[tokio::test]
async fn another_hypervisor_and_a_missing_qemu_have_their_own_reasons() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    fs::write(host.path("sbs/s1/persist.json"), r#"{"HypervisorState":{"Type":"clh"}}"#).unwrap();
    let agent = format!("unix://{}", host.path("agent.sock").display());
    assert_refused(&mut host, image.path(), &["--agent", &agent], "not_qemu", 10).await;
    fs::write(host.path("sbs/s1/persist.json"), "{}").unwrap();
    host.qemu.kill().unwrap();
    host.qemu.wait().unwrap();
    host.plug(image.path(), "/dev/xvda", &["--agent", &agent])
        .await
        .assert_fails("qmp_unreachable", 14);
    fs::remove_file(host.path("vm/s1/qmp.sock")).unwrap();
    host.plug(image.path(), "/dev/xvda", &["--agent", &agent])
        .await
        .assert_fails("qmp_unreachable", 14);
}

#[rstest]
#[case(&["hot-plug", "--container", "c1", "--block-volume", "/etc/hostname", "--device-path", "/dev/xvda"])]
#[case(&["hot-unplug", "--device-path", "/dev/xvda"])]
#[case(&["list"])]
#[case(&["inspect", "--device-path", "/dev/xvda"])]
#[case(&["resize", "--device-path", "/dev/xvda"])]
#[case(&["throttle", "--device-path", "/dev/xvda", "--iops", "5"])]
#[case(&["stats"])]
#[case(&["repair"])]
#[tokio::test]
async fn a_user_without_permission_gets_the_reason_denied(#[case] verb: &[&str]) {
    let host = Host::boot().await;
    fs::set_permissions(host.path("vm"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(host.path("sbs"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(host.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    // The program must be where every user can run it.
    let binary = crate::common::public_copy();
    let mut command = tokio::process::Command::new(binary.path().join("ecr-runtime"));
    command.arg("--run-dir").arg(host.path("")).arg("block-volume").args(verb);
    command.args(["--output", "json", "--sandbox", "s1"]).uid(65534).gid(65534);
    crate::common::run(&mut command).await.assert_fails("denied", 11);
}
