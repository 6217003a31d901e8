//! A hot-plug is one conversation with the guest. Whatever the guest does at any of its steps, the
//! volume is attached as a whole, or nothing of it is left.

use std::time::Duration;

use crate::common::{
    Host,
    fake_agent::OnAttach,
    fake_plug::{OnPlug, Said},
    run,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::Reason;
use rstest::rstest;

const MIB: u64 = 1 << 20;

fn has(host: &Host, command: &str) -> bool {
    host.commands().iter().any(|sent| sent["execute"] == command)
}

#[tokio::test]
async fn the_guest_is_asked_once_and_about_the_disks_as_they_will_be() {
    let host = Host::boot().await;
    let (device, image) = (Loop::of(MIB), Image::of(2 * MIB));
    let volumes = [(device.path(), "/dev/xvda"), (image.path(), "/dev/xvdb")];
    let report = run(&mut host.command(&volumes, &["--timeout", "20s"])).await.report();
    let starts = host.agent.starts.lock().unwrap();
    let [start] = &starts[..] else { panic!("{} conversations", starts.len()) };
    assert_eq!(host.agent.requests.load(std::sync::atomic::Ordering::Relaxed), 1);
    // A quarter of the time is the host's, 5 s at most.
    assert!((14_000..=15_000).contains(&start.timeout_ms), "{start:?}");
    assert_ne!(start.conversation, 0);
    for (volume, attachment) in report.body.volumes.iter().zip(&start.attachments) {
        assert_eq!(
            (&volume.id, volume.size, volume.scsi.target, volume.scsi.lun),
            (
                &attachment.serial,
                attachment.size,
                attachment.address.target,
                attachment.address.lun
            )
        );
    }
}

#[rstest]
#[case::ends_before_it_is_ready(OnPlug::EndsBefore(Said::Ready), "agent_lost", 14)]
#[case::ends_before_it_prepares(OnPlug::EndsBefore(Said::Prepared), "agent_lost", 14)]
#[case::ends_before_it_attaches(OnPlug::EndsBefore(Said::Attached), "agent_lost", 14)]
#[case::is_never_ready(OnPlug::Skips(Said::Ready), "timed_out", 7)]
#[case::prepares_nothing(OnPlug::Skips(Said::Prepared), "agent_answer", 1)]
#[case::does_not_attach(OnPlug::Skips(Said::Attached), "timed_out", 7)]
#[case::is_silent_once_ready(OnPlug::FallsSilentAfter(Said::Ready), "timed_out", 7)]
#[case::is_silent_once_prepared(OnPlug::FallsSilentAfter(Said::Prepared), "timed_out", 7)]
#[case::is_silent_once_attached(OnPlug::FallsSilentAfter(Said::Attached), "timed_out", 7)]
#[case::attaches_something_else(OnPlug::Lies, "agent_answer", 1)]
#[case::rolls_back_what_is_committed(OnPlug::RefusesCommit, "cancelled", 4)]
#[tokio::test]
async fn a_guest_that_breaks_a_conversation_leaves_nothing(
    #[case] on_plug: OnPlug,
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let volume = Loop::of(MIB);
    *host.agent.on_plug.lock().unwrap() = on_plug;
    let ran = host.plug(volume.path(), "/dev/xvda", &["--timeout", "2s"]).await;
    ran.assert_fails(reason, exit_code);
    assert!(ran.took < Duration::from_secs(4), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
    assert!(!volume.is_claimed());
}

#[tokio::test]
async fn no_disk_is_added_before_the_guest_is_ready() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let volume = Loop::of(MIB);
    *host.agent.on_plug.lock().unwrap() = OnPlug::EndsBefore(Said::Ready);
    host.plug(volume.path(), "/dev/xvda", &[]).await.assert_fails("agent_lost", 14);
    assert_eq!(host.snapshot().await, before);
    assert!(has(&host, "blockdev-add") && !has(&host, "device_add"));
    assert!(host.agent.detached.lock().unwrap().is_empty(), "the guest had nothing");
}

#[rstest]
#[case(Reason::REASON_CONTAINER_NOT_RUNNING, "container_not_running", 3)]
#[case(Reason::REASON_DENIED, "denied_by_guest", 9)]
#[tokio::test]
async fn a_guest_that_is_not_ready_says_why(
    #[case] refusal: Reason,
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    *host.agent.probe_failure.lock().unwrap() = Some(refusal);
    host.plug(Image::of(MIB).path(), "/dev/xvda", &[]).await.assert_fails(reason, exit_code);
    assert_eq!(host.snapshot().await, before);
    assert!(!has(&host, "device_add"));
}

/// The guest confirms the end of the conversation and its rollback: no request to detach is needed.
#[tokio::test]
async fn a_reply_about_another_disk_ends_the_conversation() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    host.agent.set_on_attach(OnAttach::ReportsAnotherSerial);
    host.plug(Image::of(MIB).path(), "/dev/xvda", &[]).await.assert_fails("agent_answer", 1);
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
    assert!(host.agent.detached.lock().unwrap().is_empty());
}

#[cfg(feature = "fault")]
#[tokio::test]
async fn a_taken_address_begins_another_conversation() {
    let mut host = Host::boot().await;
    host.execute("blockdev-add", serde_json::json!({"driver": "null-co", "node-name": "other"}))
        .await;
    let other = serde_json::json!({
        "driver": "scsi-hd", "id": "other", "drive": "other", "bus": "scsi0.0",
        "scsi-id": 255, "lun": 2,
    });
    host.execute("device_add", other).await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    let volumes = [(device.path(), "/dev/xvda"), (image.path(), "/dev/xvdb")];
    let mut command = host.command(&volumes, &[]);
    // The second volume's address is the one that is taken.
    let report = run(command.env("ECR_RUNTIME_FAULT", "first-address=value:0")).await.report();
    let luns: Vec<_> = report.body.volumes.iter().map(|volume| volume.scsi.lun).collect();
    assert_eq!(
        (report.result, luns),
        (host_trigger::output::envelope::Outcome::Attached, vec![1, 3])
    );
    let starts = host.agent.starts.lock().unwrap();
    let asked: Vec<Vec<_>> = starts
        .iter()
        .map(|start| start.attachments.iter().map(|volume| volume.address.lun).collect())
        .collect();
    assert_eq!(asked, [[1, 2], [1, 3]]);
    assert!(host.agent.detached.lock().unwrap().is_empty());
}
