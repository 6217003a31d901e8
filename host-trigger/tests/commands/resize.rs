//! `resize` against a real QEMU: the requests to QEMU and to the guest and their order, what
//! remains if the guest does not follow, and that bad input changes nothing.

use std::time::Duration;

use crate::common::{
    Host,
    fake_agent::OnResize,
    run,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::Reason;
use host_trigger::output::{
    envelope::{Envelope, Outcome},
    report::Report,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;
use serde_json::json;

const MIB: u64 = 1 << 20;
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&C1[..], more].concat()
}

async fn resize(host: &Host, more: &[&str]) -> Envelope<Report> {
    host.verb("resize", &with(more)).await.report()
}

async fn size_in_qemu(host: &mut Host, id: &str) -> u64 {
    host.medium(id).await["image"]["virtual-size"].as_u64().unwrap()
}

#[tokio::test]
async fn an_image_is_grown_by_qemu_and_the_guest_follows() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(2 * MIB);
    let plugged = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let id = plugged.body.volumes[0].id.as_str();

    let changes = host.changes();
    let report = resize(&host, &["--size", "8MiB", "--dry-run"]).await;
    assert!(report.dry_run);
    assert_eq!((report.result, report.body.volumes[0].size), (Outcome::Resized, 8 * MIB));
    assert_eq!(resize(&host, &["--size", "2MiB", "--dry-run"]).await.result, Outcome::Unchanged);
    assert_eq!((host.changes(), image.size()), (changes, 2 * MIB));
    assert!(
        host.agent.requested_sizes.lock().unwrap().is_empty(),
        "the guest gets no request to resize"
    );

    let report = resize(&host, &["--size", "8MiB"]).await;
    assert_eq!((report.command.as_str(), report.result), ("resize", Outcome::Resized));
    assert_eq!((report.body.volumes[0].id.as_str(), report.body.volumes[0].size), (id, 8 * MIB));
    assert_eq!((image.size(), size_in_qemu(&mut host, id).await), (8 * MIB, 8 * MIB));
    // The first request has the old size: it shows whether the guest can follow.
    assert_eq!(*host.agent.requested_sizes.lock().unwrap(), [2 * MIB, 8 * MIB]);
    let names: Vec<_> =
        report.timings_us.as_ref().unwrap().0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["find", "lock", "prepare", "ask_guest", "block_resize", "guest", "total"]);

    let changes = host.changes();
    for more in [&["--size", "8388608"][..], &[]] {
        assert_eq!(resize(&host, more).await.result, Outcome::Unchanged);
    }
    assert_eq!(host.changes(), changes);
    let listed = &host.verb("list", &[]).await.listing().body.volumes[0];
    assert_eq!((listed.volume.size, listed.guest.as_ref().unwrap().size), (8 * MIB, 8 * MIB));
    let again = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    assert_eq!((again.result, again.body.volumes[0].size), (Outcome::Unchanged, 8 * MIB));
    let unplugged = host.verb("hot-unplug", &C1).await.report();
    assert_eq!(unplugged.body.volumes[0].size, 8 * MIB, "the record has it");
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_source_that_was_resized_by_others_is_read_again() {
    let mut host = Host::boot().await;
    let (device, image) = (Loop::of(2 * MIB), Image::of(2 * MIB));
    let plugged = host.plug(device.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(resize(&host, &[]).await.result, Outcome::Unchanged);
    device.resize(6 * MIB);
    assert_eq!(resize(&host, &["--size", "6MiB"]).await.body.volumes[0].size, 6 * MIB);
    assert_eq!(size_in_qemu(&mut host, &plugged.body.volumes[0].id).await, 6 * MIB);
    assert!(device.is_claimed());
    device.resize(7 * MIB);
    assert_eq!(resize(&host, &[]).await.result, Outcome::Resized);
    assert_eq!(size_in_qemu(&mut host, &plugged.body.volumes[0].id).await, 7 * MIB);

    let plugged = host.plug(image.path(), "/dev/xvdb", &[]).await.report();
    image.resize(5 * MIB);
    let by_id = ["--volume", &plugged.body.volumes[0].id];
    assert_eq!(host.verb("resize", &by_id).await.report().body.volumes[0].size, 5 * MIB);
    assert_eq!(image.size(), 5 * MIB);
}

#[tokio::test]
async fn a_volume_shrinks_only_if_that_is_allowed() {
    let mut host = Host::boot().await;
    let image = Image::of(4 * MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    host.verb("resize", &with(&["--size", "2MiB"])).await.assert_fails("would_shrink", 4);
    assert_eq!(image.size(), 4 * MIB);
    let report = resize(&host, &["--size", "2MiB", "--allow-shrink"]).await;
    assert_eq!((report.result, report.body.volumes[0].size), (Outcome::Resized, 2 * MIB));
    assert_eq!((image.size(), size_in_qemu(&mut host, &id).await), (2 * MIB, 2 * MIB));
}

#[rstest]
#[case(&["--size", "0"], "usage", 2)]
#[case(&["--size", "513"], "usage", 2)]
#[case(&["--size", "-1MiB"], "usage", 2)]
#[case(&["--size=-1"], "usage", 2)]
#[case(&["--size", "8EiB"], "usage", 2)]
#[case(&["--size", "99999999999999999999"], "usage", 2)]
#[case(&["--size", "10G"], "usage", 2)]
#[case(&["--size", "512"], "would_shrink", 4)]
#[case(&["--size", "7EiB"], "image_limit", 6)]
#[case(&["--container", "c2", "--size", "9MiB"], "volume_not_found", 3)]
#[tokio::test]
async fn a_bad_size_changes_nothing(
    #[case] more: &[&str],
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let (before, changes) = (host.snapshot().await, host.changes());
    let more = if more[0] == "--container" { [more, &C1[2..]].concat() } else { with(more) };
    let ran = host.verb("resize", &more).await;
    ran.assert_fails(reason, exit_code);
    assert_eq!(host.snapshot().await, before);
    assert_eq!(image.size(), MIB);
    // Only QEMU finds out the largest file of the image's file system.
    let new_changes: Vec<_> =
        host.changes().drain(changes.len()..).map(|change| change["execute"].clone()).collect();
    assert_eq!(
        new_changes,
        if reason == "image_limit" { vec![json!("block_resize")] } else { vec![] }
    );
}

/// Asserts that a resize of `/dev/xvda` fails and changes nothing. Returns the error message.
async fn assert_refused(host: &mut Host, more: &[&str], reason: &str, exit_code: u8) -> String {
    let (before, changes) = (host.snapshot().await, host.changes());
    let ran = host.verb("resize", &with(more)).await;
    ran.assert_fails(reason, exit_code);
    assert_eq!((host.snapshot().await, host.changes()), (before, changes));
    ran.failure().message
}

#[tokio::test]
async fn a_block_device_is_used_with_the_size_that_it_has() {
    let mut host = Host::boot().await;
    let device = Loop::of(4 * MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let message = assert_refused(&mut host, &["--size", "8MiB"], "device_size", 4).await;
    assert!(message.ends_with("has 4194304 bytes, not 8388608"), "{message}");
    assert_refused(&mut host, &["--size", "2MiB"], "would_shrink", 4).await;
    assert_refused(&mut host, &["--size", "2MiB", "--allow-shrink"], "device_size", 4).await;
    device.resize(8 * MIB);
    assert_refused(&mut host, &["--size", "6MiB"], "device_size", 4).await;
    device.resize(2 * MIB);
    assert_refused(&mut host, &[], "would_shrink", 4).await;
    assert_eq!(resize(&host, &["--allow-shrink"]).await.body.volumes[0].size, 2 * MIB);
}

#[tokio::test]
async fn a_replaced_source_is_refused() {
    let mut host = Host::boot().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    host.plug(&path, "/dev/xvda", &[]).await.report();
    std::fs::rename(&path, directory.path().join("moved")).unwrap();
    assert_refused(&mut host, &["--size", "2MiB"], "source_not_found", 3).await;
    std::fs::write(&path, vec![0; 2 << 20]).unwrap();
    assert_refused(&mut host, &["--size", "2MiB"], "source_replaced", 6).await;
    std::fs::rename(directory.path().join("moved"), &path).unwrap();
    assert_eq!(resize(&host, &["--size", "2MiB"]).await.result, Outcome::Resized);
}

#[tokio::test]
async fn an_unaligned_image_and_a_read_only_volume_are_refused() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &["--read-only"]).await.report();
    assert_eq!(resize(&host, &[]).await.result, Outcome::Unchanged);
    assert_refused(&mut host, &["--size", "2MiB"], "read_only_volume", 10).await;
    image.resize(MIB + 100);
    assert_refused(&mut host, &[], "source_unaligned", 6).await;
}

#[tokio::test]
async fn an_incomplete_volume_is_refused() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    host.execute("device_del", json!({"id": format!("ecrblk-{id}")})).await;
    host.await_event("DEVICE_DELETED").await;
    assert_refused(&mut host, &["--size", "2MiB"], "incomplete_volume", 8).await;
    assert_eq!(image.size(), MIB);
}

#[rstest]
#[case(Reason::REASON_DENIED, "denied_by_guest", 9)]
#[case(Reason::REASON_IDENTITY_MISMATCH, "identity_mismatch", 9)]
#[tokio::test]
async fn a_guest_that_refuses_is_asked_before_anything_is_changed(
    #[case] refusal: Reason,
    #[case] reason: &str,
    #[case] exit_code: u8,
) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    *host.agent.on_resize.lock().unwrap() = OnResize::Refuses(refusal);
    assert_refused(&mut host, &["--size", "2MiB"], reason, exit_code).await;
    let unreachable = ["--size", "2MiB", "--agent", "unix:///nonexistent/agent.sock"];
    assert_refused(&mut host, &unreachable, "agent_unreachable", 14).await;
    assert_eq!(image.size(), MIB);
}

#[tokio::test]
async fn an_image_gets_its_size_back_if_the_guest_did_not_follow() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    *host.agent.on_resize.lock().unwrap() = OnResize::KeepsSize;
    host.verb("resize", &with(&["--size", "2MiB"])).await.assert_fails("timed_out", 7);
    assert_eq!((image.size(), size_in_qemu(&mut host, &id).await), (MIB, MIB));
    assert_eq!(*host.agent.requested_sizes.lock().unwrap(), [MIB, 2 * MIB]);

    // If others have grown the image and written to the new part, truncation would lose data.
    image.resize(3 * MIB);
    host.verb("resize", &C1).await.assert_fails("incomplete", 8);
    assert_eq!((image.size(), size_in_qemu(&mut host, &id).await), (3 * MIB, 3 * MIB));
    *host.agent.on_resize.lock().unwrap() = OnResize::Follows;
    assert_eq!(resize(&host, &[]).await.result, Outcome::Resized, "a repeated resize completes it");
}

#[rstest]
#[case(OnResize::FollowsAndFails)]
#[case(OnResize::ReportsAnotherSize)]
#[tokio::test]
async fn an_image_is_not_truncated_if_the_guest_may_have_used_the_new_size(
    #[case] behaviour: OnResize,
) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    *host.agent.on_resize.lock().unwrap() = behaviour;
    let error = {
        let ran = host.verb("resize", &with(&["--size", "2MiB"])).await;
        ran.assert_fails("incomplete", 8);
        ran.failure()
    };
    assert!(error.message.contains("2097152 bytes"), "{}", error.message);
    assert_eq!((image.size(), size_in_qemu(&mut host, &id).await), (2 * MIB, 2 * MIB));
    *host.agent.on_resize.lock().unwrap() = OnResize::Follows;
    assert_eq!(resize(&host, &["--size", "2MiB"]).await.body.volumes[0].size, 2 * MIB);
}

#[tokio::test]
async fn a_signal_during_a_resize_leaves_what_a_repeated_resize_completes() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    // Consume the notification of the hot-plug.
    host.agent.request_received.notified().await;
    *host.agent.on_resize.lock().unwrap() = OnResize::Hangs;
    let mut command = host.verb_command("resize", &with(&["--size", "2MiB"]));
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    tokio::time::timeout(Duration::from_secs(30), host.agent.request_received.notified())
        .await
        .unwrap();
    kill(Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(8), "{output:?}");
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.contains("interrupted by SIGINT; the rollback is incomplete"), "{report}");
    assert_eq!((image.size(), size_in_qemu(&mut host, &id).await), (2 * MIB, 2 * MIB));
    *host.agent.on_resize.lock().unwrap() = OnResize::Follows;
    assert_eq!(resize(&host, &[]).await.result, Outcome::Unchanged);
}

#[tokio::test]
async fn the_text_output_has_the_new_size() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(host.path("")).args(["block-volume", "resize", "--sandbox", "s1"]);
    let text = run(command.args(C1).args(["--size", "3MiB"])).await;
    assert_eq!(text.exit_code, Some(0), "{text:?}");
    assert!(
        text.stdout.starts_with("resized ") && text.stdout.contains("(3 MiB) at /dev/xvda"),
        "{text:?}"
    );
}
