//! The conversation `Unplug` with a guest, against a real QEMU: what goes on at the same time, in
//! which order the rest is removed, and what a guest leaves that does not keep to it.

use crate::common::{Host, fake_unplug::OnUnplug, run, volume::Loop};
use block_volume_api::block_volume::Reason;
use host_trigger::output::envelope::Outcome;
use rstest::rstest;

const MIB: u64 = 1 << 20;
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];

async fn plugged(on_unplug: OnUnplug) -> (Host, Loop) {
    let host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    *host.agent.on_unplug.lock().unwrap() = on_unplug;
    (host, device)
}

fn sent(host: &Host, name: &str) -> bool {
    host.changes().iter().any(|command| command["execute"] == name)
}

#[tokio::test]
async fn qemu_removes_the_device_while_the_guest_removes_the_disk_and_the_node_after_both() {
    let (mut host, device) = plugged(OnUnplug::DetachesWithPermit).await;
    let mut command = host.verb_command("hot-unplug", &C1);
    let agent = host.agent.clone();
    let (ran, ()) = tokio::join!(run(&mut command), async {
        host.await_event("DEVICE_DELETED").await;
        assert!(agent.detached.lock().unwrap().is_empty(), "the guest is still at it");
        assert!(!sent(&host, "blockdev-del") && device.is_claimed());
        agent.may_detach.add_permits(1);
    });
    assert_eq!(ran.report().result, Outcome::Detached);
    assert!(sent(&host, "blockdev-del") && !device.is_claimed());
}

#[tokio::test]
async fn a_guest_without_the_conversation_is_asked_to_detach() {
    let (mut host, device) = plugged(OnUnplug::HasNoMethod).await;
    let report = host.verb("hot-unplug", &C1).await.report();
    assert_eq!(report.result, Outcome::Detached);
    assert_eq!(host.agent.detached.lock().unwrap().len(), 1);
    assert!(!device.is_claimed());
    let names = &report.timings_us.as_ref().unwrap().0;
    assert!(names.iter().all(|(name, _)| name != "release"), "{names:?}");
    assert!(crate::common::records(&host.snapshot().await).is_empty());
}

/// The second request finds what the first one has done.
#[rstest]
#[case::after_the_release(OnUnplug::Detaches, 2)]
#[case::before_it(OnUnplug::SaysNothing, 1)]
#[tokio::test]
async fn a_lost_stream_is_settled_by_a_detach(#[case] on_unplug: OnUnplug, #[case] times: usize) {
    let (host, device) = plugged(on_unplug).await;
    *host.agent.loses_detach_reply.lock().unwrap() = on_unplug == OnUnplug::Detaches;
    let report = host.verb("hot-unplug", &C1).await.report();
    assert_eq!(report.result, Outcome::Detached);
    assert_eq!(host.agent.detached.lock().unwrap().len(), times);
    assert!(!device.is_claimed());
}

/// A guest that says that nothing has changed is not believed: QEMU has removed the device.
#[rstest]
#[case::a_part_is_done(Reason::REASON_TIMED_OUT, false)]
#[case::it_lies(Reason::REASON_BUSY, true)]
#[tokio::test]
async fn a_failure_after_the_release_is_incomplete_and_repaired(
    #[case] reason: Reason,
    #[case] undone: bool,
) {
    let (host, device) = plugged(OnUnplug::FailsWhenReleased(reason, undone)).await;
    let ran = host.verb("hot-unplug", &C1).await;
    ran.assert_fails("incomplete", 8);
    assert!(ran.failure().message.contains("has released it"), "{ran:?}");
    assert!(!sent(&host, "blockdev-del") && device.is_claimed());
    *host.agent.on_unplug.lock().unwrap() = OnUnplug::Detaches;
    assert_eq!(host.verb("repair", &[]).await.exit_code, Some(0));
    assert!(!device.is_claimed());
    assert_eq!(host.agent.detached.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn the_release_of_another_disk_is_no_release_of_this_one() {
    let (host, device) = plugged(OnUnplug::ReleasesAnother).await;
    let report = host.verb("hot-unplug", &C1).await.report();
    let names = &report.timings_us.as_ref().unwrap().0;
    assert!(names.iter().all(|(name, _)| name != "release"), "{names:?}");
    assert!(!device.is_claimed());
}
