//! A hot-plug that fails against a real QEMU leaves nothing: the guest refuses, replies wrongly,
//! hangs or dies, a signal arrives, QEMU ends.

use std::time::Duration;

use crate::common::{
    Host,
    fake_agent::OnAttach,
    records, run, run_and_lose_qemu,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::Reason;
use host_trigger::output::envelope::Outcome;
use rstest::rstest;
use serde_json::Value;

const MIB: u64 = 1 << 20;

#[rstest]
#[case(Reason::REASON_CONTAINER_NOT_RUNNING, 3)]
#[case(Reason::REASON_PATH_TAKEN, 4)]
#[case(Reason::REASON_BUSY, 5)]
#[case(Reason::REASON_TIMED_OUT, 7)]
#[case(Reason::REASON_IDENTITY_MISMATCH, 9)]
#[case(Reason::REASON_UNSUPPORTED, 10)]
#[case(Reason::REASON_SYSTEM, 1)]
#[tokio::test]
async fn a_guest_that_refuses_leaves_nothing(#[case] reason: Reason, #[case] exit_code: u8) {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let volume = Loop::of(MIB);
    for undone in [true, false] {
        host.agent.set_on_attach(OnAttach::Fails { reason, undone });
        let failure = host.plug(volume.path(), "/dev/xvda", &[]).await.failure();
        assert_eq!(failure.exit_code, exit_code);
        assert!(!failure.message.contains('\u{1b}'), "{failure:?}");
        assert_eq!(host.snapshot().await, before);
        assert!(!volume.is_claimed());
        // If the guest has rolled back by itself, it is not asked to detach.
        assert_eq!(host.agent.detached.lock().unwrap().is_empty(), undone);
    }
}

#[tokio::test]
async fn a_missing_reply_is_rolled_back_in_the_guest_first() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    host.agent.set_on_attach(OnAttach::Hangs);
    let ran = host.plug(Image::of(MIB).path(), "/dev/xvda", &["--timeout", "2s"]).await;
    ran.assert_fails("timed_out", 7);
    assert!(ran.took < Duration::from_secs(3), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
    assert_eq!(host.agent.detached.lock().unwrap().len(), 1);
}

#[rstest]
#[case(nix::sys::signal::SIGINT, 130)]
#[case(nix::sys::signal::SIGTERM, 143)]
#[tokio::test]
async fn a_signal_takes_effect_after_the_rollback(
    #[case] signal: nix::sys::signal::Signal,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    host.agent.set_on_attach(OnAttach::Hangs);
    let image = Image::of(MIB);
    let mut command = host.command(&[(image.path(), "/dev/xvda")], &[]);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    host.agent.request_received.notified().await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(exit_code.into()));
    let failure: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(failure["error"]["reason"], "interrupted");
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
}

#[tokio::test]
async fn a_hot_plug_whose_agent_died_is_completed_by_the_next_run() {
    let mut host = Host::boot().await;
    host.agent.set_on_attach(OnAttach::Hangs);
    let volume = Loop::of(MIB);
    let mut command = host.command(&[(volume.path(), "/dev/xvda")], &["--timeout", "4s"]);
    let (ran, ()) = tokio::join!(run(&mut command), async {
        host.agent.request_received.notified().await;
        host.agent.stop().await;
    });
    // The disk is not removed before the guest has confirmed that it released it.
    ran.assert_fails("incomplete", 8);
    assert!(volume.is_claimed());

    host.agent.set_on_attach(OnAttach::Succeeds);
    host.agent.start().await;
    let report = host.plug(volume.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(report.result, Outcome::Attached);
    assert_eq!(host.agent.detached.lock().unwrap().len(), 1);
    assert_eq!(records(&host.snapshot().await).len(), 2);
}

#[tokio::test]
async fn a_qemu_that_ends_leaves_nothing_to_roll_back() {
    let mut host = Host::boot().await;
    host.agent.set_on_attach(OnAttach::Hangs);
    let volume = Loop::of(MIB);
    let mut command = host.command(&[(volume.path(), "/dev/xvda")], &["--timeout", "2s"]);
    let ran = run_and_lose_qemu(&mut host, &mut command).await;
    ran.assert_fails("timed_out", 7);
    assert!(!volume.is_claimed());
}

#[tokio::test]
async fn a_run_that_waits_for_another_run_times_out() {
    let host = Host::boot().await;
    let directory = std::fs::File::open(host.path("vm/s1")).unwrap();
    let _lock = nix::fcntl::Flock::lock(directory, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let ran = host.plug(Image::of(MIB).path(), "/dev/xvda", &["--timeout", "300ms"]).await;
    ran.assert_fails("timed_out", 7);
    assert!(ran.took < Duration::from_secs(2), "{ran:?}");
}

#[tokio::test]
async fn another_client_keeps_its_descriptor_sets() {
    let mut host = Host::boot().await;
    let foreign = std::fs::File::open("/dev/null").unwrap();
    let deadline = host_trigger::Deadline::after(Duration::from_secs(10));
    let mut other =
        block_volume_qmp::Qmp::connect(host.path("vm/s1/qmp.sock"), deadline).await.unwrap();
    other.add_fd(&foreign, None, "libvirt-x").await.unwrap();
    other.add_fd(&foreign, None, "").await.unwrap();
    drop(other);
    let before = host.snapshot().await;
    host.agent.set_on_attach(OnAttach::Fails { reason: Reason::REASON_SYSTEM, undone: true });
    host.plug(Image::of(MIB).path(), "/dev/xvda", &[]).await.assert_fails("guest_system", 1);
    assert_eq!(host.snapshot().await, before);
    assert_eq!(before["query-fdsets"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_closed_standard_error_does_not_prevent_the_rollback() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    host.agent.set_on_attach(OnAttach::Fails { reason: Reason::REASON_SYSTEM, undone: false });
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let image = Image::of(MIB);
    let mut command = host.command(&[(image.path(), "/dev/xvda")], &["--verbose"]);
    let status = command.stdout(std::process::Stdio::null()).stderr(writer).status().await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(host.snapshot().await, before);
}
