//! An agent of a version before `Plug` is served by `Probe` and `Attach`: the same results, errors
//! and rollbacks.

use std::{sync::atomic::Ordering, time::Duration};

use crate::common::{
    Host,
    fake_agent::OnAttach,
    records, run,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::Reason;
use host_trigger::output::envelope::Outcome;
use rstest::rstest;

const MIB: u64 = 1 << 20;

async fn boot() -> Host {
    let host = Host::boot().await;
    host.agent.become_old().await;
    host
}

#[tokio::test]
async fn volumes_are_plugged_repeated_shared_and_unplugged() {
    let mut host = boot().await;
    let clean = host.snapshot().await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    let volumes = [(device.path(), "/dev/xvda"), (image.path(), "/dev/xvdb")];
    let first = run(&mut host.command(&volumes, &[])).await.report();
    assert_eq!(first.result, Outcome::Attached);
    // Probe and Attach: the refusal of `Plug` is all that is added.
    assert_eq!(host.agent.requests.swap(0, Ordering::Relaxed), 2);
    assert!(host.agent.starts.lock().unwrap().is_empty());
    assert_eq!(records(&host.snapshot().await).len(), 4);
    let again = run(&mut host.command(&volumes, &[])).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    host.plug(device.path(), "/dev/xvdc", &["--shared"]).await.report();
    for path in ["/dev/xvdc", "/dev/xvdb", "/dev/xvda"] {
        host.verb("hot-unplug", &["--container", "c1", "--device-path", path]).await.report();
    }
    assert_eq!(host.snapshot().await, clean);
}

#[rstest]
#[case(Reason::REASON_CONTAINER_NOT_RUNNING, 3)]
#[case(Reason::REASON_NO_SPACE, 9)]
#[tokio::test]
async fn a_refusal_leaves_nothing(#[case] reason: Reason, #[case] exit_code: u8) {
    let mut host = boot().await;
    let before = host.snapshot().await;
    let volume = Loop::of(MIB);
    *host.agent.probe_failure.lock().unwrap() = Some(reason);
    let failure = host.plug(volume.path(), "/dev/xvda", &[]).await.failure();
    assert_eq!(failure.exit_code, exit_code);
    *host.agent.probe_failure.lock().unwrap() = None;
    for undone in [true, false] {
        host.agent.set_on_attach(OnAttach::Fails { reason, undone });
        let failure = host.plug(volume.path(), "/dev/xvda", &[]).await.failure();
        assert_eq!(failure.exit_code, exit_code);
        assert_eq!(host.agent.detached.lock().unwrap().is_empty(), undone);
    }
    host.agent.set_on_attach(OnAttach::ReportsFewerVolumes);
    host.plug(volume.path(), "/dev/xvda", &[]).await.assert_fails("agent_answer", 1);
    assert_eq!(host.snapshot().await, before);
    assert!(!volume.is_claimed());
}

#[tokio::test]
async fn a_lost_reply_is_settled_by_detach() {
    let mut host = boot().await;
    let before = host.snapshot().await;
    host.agent.set_on_attach(OnAttach::Hangs);
    let ran = host.plug(Image::of(MIB).path(), "/dev/xvda", &["--timeout", "2s"]).await;
    ran.assert_fails("timed_out", 7);
    assert!(ran.took < Duration::from_secs(3), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
    assert_eq!(host.agent.detached.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_agent_without_the_plugin_is_told_from_an_old_one() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    host.agent.stop().await;
    host.agent.start_without_plugin().await;
    host.plug(Image::of(MIB).path(), "/dev/xvda", &[]).await.assert_fails("no_plugin", 10);
    assert_eq!(host.snapshot().await, before);
}

/// Without the conversation the guest keeps what it has done. Repair completes it.
#[cfg(feature = "fault")]
#[rstest]
#[case("after-ready", "rolled_back", "gone")]
#[case("after-go", "rolled_back", "gone")]
#[case("after-prepared", "completed", "attached")]
#[case("after-record", "kept", "attached")]
#[case("after-commit", "kept", "attached")]
#[tokio::test]
async fn a_killed_hot_plug_is_repaired(
    #[case] point: &str,
    #[case] action: &str,
    #[case] state_after: &str,
) {
    let host = boot().await;
    let device = Loop::of(MIB);
    let mut command = host.command(&[(device.path(), "/dev/xvda")], &[]);
    let killed = run(command.env("ECR_RUNTIME_FAULT", format!("{point}=kill"))).await;
    assert_eq!(killed.exit_code, Some(-9), "{killed:?}");
    let repaired = host.verb("repair", &[]).await;
    let json: serde_json::Value = serde_json::from_str(&repaired.stdout).unwrap();
    let volume = &json["volumes"][0];
    assert_eq!((&volume["action"], &volume["state_after"]), (&action.into(), &state_after.into()));
    assert_eq!(device.is_claimed(), state_after == "attached");
}
