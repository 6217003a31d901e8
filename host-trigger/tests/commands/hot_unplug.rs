//! `hot-unplug` against a real QEMU: what is removed, in which order, and what a refusal or a
//! broken connection leaves.

use std::{process::Stdio, time::Duration};

use crate::common::{
    Host, run, run_and_lose_qemu,
    volume::{Image, Loop},
};
use block_volume_api::block_volume::{Holder, Reason};
use host_trigger::output::envelope::Outcome;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const C1: [&str; 4] = ["--container", "c1", "--device-path", "/dev/xvda"];

#[tokio::test]
async fn a_volume_is_removed_and_its_claim_released() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let (device, image) = (Loop::of(MIB), Image::of(2 * MIB));
    let kept = host.plug(image.path(), "/dev/xvdb", &[]).await.report();
    let with_one = host.snapshot().await;
    let plugged = host.plug(device.path(), "/dev/xvda", &[]).await.report();

    let report = host.verb("hot-unplug", &C1).await.report();
    assert_eq!((report.command.as_str(), report.result), ("hot-unplug", Outcome::Detached));
    let (was, is) = (&plugged.body.volumes[0], &report.body.volumes[0]);
    assert_eq!((&is.id, &is.place, is.size, &is.scsi), (&was.id, &was.place, was.size, &was.scsi));
    assert_eq!(is.source_device, was.source_device);
    assert!(!device.is_claimed());
    assert_eq!(host.snapshot().await, with_one);
    assert_eq!(host.agent.attached_paths(), ["/dev/xvdb"]);
    let names: Vec<_> =
        report.timings_us.as_ref().unwrap().0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["find", "lock", "qemu", "prepare", "release", "detach", "remove", "total"]);

    let report = host.verb("hot-unplug", &["--volume", &kept.body.volumes[0].id]).await.report();
    assert_eq!(report.result, Outcome::Detached);
    assert_eq!(host.snapshot().await, clean);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn the_guest_gets_back_what_it_reported() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let attached = host.agent.attached.lock().unwrap().values().next().unwrap().clone();
    host.verb("hot-unplug", &C1).await.report();
    let mut detachments = host.agent.last_detachments.lock().unwrap().clone();
    let detachment = detachments.pop().unwrap();
    assert_eq!(detachment.attachment.as_ref(), Some(&attached));
    let device = &detachment.outcome.device;
    assert_eq!((device.major, device.minor), (8, 0));
}

#[tokio::test]
async fn a_missing_volume_is_unchanged_by_its_id_and_not_found_by_its_path() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let plugged = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let id = plugged.body.volumes[0].id.as_str();
    let before = host.snapshot().await;

    for more in [
        ["--container", "c1", "--device-path", "/dev/xvdb"],
        ["--container", "c2", "--device-path", "/dev/xvda"],
    ] {
        let ran = host.verb("hot-unplug", &more).await;
        ran.assert_fails("volume_not_found", 3);
        assert!(
            ran.stdout.contains(more[1]) && ran.stdout.contains(more[3]),
            "the message names container and path: {ran:?}"
        );
    }
    let unknown = host.verb("hot-unplug", &["--volume", "0123456789abcdef"]).await.report();
    assert_eq!((unknown.result, unknown.body.volumes.len()), (Outcome::Unchanged, 0));
    host.verb("hot-unplug", &["--volume", id, "--container", "c2"])
        .await
        .assert_fails("other_container", 4);
    host.verb("hot-unplug", &["--volume", id, "--container", "c9"])
        .await
        .assert_fails("container_not_found", 3);
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.detached.lock().unwrap().is_empty());

    host.verb("hot-unplug", &["--volume", id]).await.report();
    let again = host.verb("hot-unplug", &["--volume", id]).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    host.verb("hot-unplug", &C1).await.assert_fails("volume_not_found", 3);
}

#[tokio::test]
async fn a_path_is_enough_if_only_one_container_has_a_volume_at_it() {
    let host = Host::boot().await;
    let (one, two) = (Image::of(MIB), Image::of(MIB));
    let first = host.plug(one.path(), "/dev/xvda", &[]).await.report();
    host.plug(two.path(), "/dev/xvda", &["--sandbox", "s1", "--container", "c2"]).await.report();
    let ran = host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await;
    ran.assert_fails("ambiguous_path", 2);
    assert!(ran.stdout.contains("container c1") && ran.stdout.contains("container c2"), "{ran:?}");
    host.verb("hot-unplug", &["--device-path", "/dev/xvda", "--container", "c2"]).await.report();
    let report = host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();
    assert_eq!(report.body.volumes[0].id, first.body.volumes[0].id);
}

#[rstest]
#[case(Reason::REASON_BUSY, 5)]
#[case(Reason::REASON_DENIED, 9)]
#[case(Reason::REASON_CONTAINER_NOT_RUNNING, 3)]
#[tokio::test]
async fn a_guest_that_refuses_keeps_the_volume(#[case] reason: Reason, #[case] exit_code: u8) {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    *host.agent.detach_failure.lock().unwrap() = Some((reason, true));
    let error = host.verb("hot-unplug", &C1).await.failure();
    assert_eq!(error.exit_code, exit_code);
    assert!(error.message.contains("scripted") && !error.message.contains('\u{1b}'), "{error:?}");
    assert_eq!(host.snapshot().await, before);
    assert!(device.is_claimed());

    // A detach that is incomplete in the guest is reported so, and the same command completes it.
    *host.agent.detach_failure.lock().unwrap() = Some((reason, false));
    host.verb("hot-unplug", &C1).await.assert_fails("incomplete", 8);
    assert_eq!(host.snapshot().await, before);
    *host.agent.detach_failure.lock().unwrap() = None;
    host.verb("hot-unplug", &C1).await.report();
    assert!(!device.is_claimed());
}

#[tokio::test]
async fn holders_are_reported_and_so_are_those_that_force_disconnected() {
    let host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let holder = Holder {
        kind: "process".into(),
        pid: 57,
        command: "d\u{1b}d".into(),
        container_id: "c1".into(),
        detail: "/dev/xvda".into(),
        ..Default::default()
    };
    *host.agent.detach_holders.lock().unwrap() = vec![holder];
    *host.agent.detach_failure.lock().unwrap() = Some((Reason::REASON_BUSY, true));
    let ran = host.verb("hot-unplug", &[&C1[..], &["--wait", "3s"]].concat()).await;
    ran.assert_fails("busy", 5);
    let error = ran.failure();
    assert!(
        error.message.ends_with(": process 57 (d\\u{1b}d) in container c1, /dev/xvda"),
        "{error:?}"
    );
    assert!(error.remedy.unwrap().contains("--force"));
    assert_eq!((error.holders.len(), error.holders[0].pid), (1, Some(57)));
    let (force, wait) = *host.agent.detach_terms.lock().unwrap();
    assert!(!force && (2500..=3000).contains(&wait), "{wait}");
    assert!(device.is_claimed());

    *host.agent.detach_failure.lock().unwrap() = None;
    let report = host.verb("hot-unplug", &[&C1[..], &["--force"]].concat()).await.report();
    assert_eq!(
        (report.result, report.body.broken_holders[0].kind.as_str()),
        (Outcome::Detached, "process")
    );
    assert_eq!(*host.agent.detach_terms.lock().unwrap(), (true, 0));
    assert!(!device.is_claimed());
}

#[tokio::test]
async fn nothing_is_removed_from_qemu_without_the_guest() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    let unreachable = [&C1[..], &["--agent", "unix:///nonexistent/agent.sock"]].concat();
    host.verb("hot-unplug", &unreachable).await.assert_fails("agent_unreachable", 14);
    *host.agent.api_level.lock().unwrap() = 2;
    host.verb("hot-unplug", &C1).await.assert_fails("api_level", 12);
    host.agent.stop().await;
    host.agent.start_without_plugin().await;
    host.verb("hot-unplug", &C1).await.assert_fails("no_plugin", 10);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_request_whose_reply_is_lost_is_sent_again() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    *host.agent.loses_detach_reply.lock().unwrap() = true;
    let report = host.verb("hot-unplug", &C1).await.report();
    assert_eq!(report.result, Outcome::Detached);
    assert_eq!(host.agent.detached.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_guest_that_never_replies_times_out_and_the_volume_is_kept() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;
    *host.agent.hangs_on_detach.lock().unwrap() = true;
    let ran = host.verb("hot-unplug", &[&C1[..], &["--timeout", "1s"]].concat()).await;
    ran.assert_fails("incomplete", 8);
    assert!(ran.took < Duration::from_secs(3), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
}

/// Another client or a killed run may have removed each part of what QEMU has.
#[rstest]
#[case::device(1)]
#[case::device_and_node(2)]
#[tokio::test]
async fn what_is_left_in_qemu_is_removed(#[case] steps: usize) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let id = host.plug(device.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    host.execute("device_del", json!({"id": format!("ecrblk-{id}")})).await;
    host.await_event("DEVICE_DELETED").await;
    if steps == 2 {
        host.execute("blockdev-del", json!({"node-name": format!("ecrblk-{id}-n")})).await;
    }
    let report = host.verb("hot-unplug", &C1).await.report();
    assert_eq!((report.result, &report.body.volumes[0].id), (Outcome::Detached, &id));
    // There is a commit record, so the guest may still have a device node.
    assert_eq!(*host.agent.detached.lock().unwrap(), [id]);
    assert_eq!(host.snapshot().await, clean);
    assert!(!device.is_claimed());
}

/// The lists that grow with the volumes are read once, and again only while QEMU has nothing else
/// to do. That of the block nodes, the longest, is not read.
#[tokio::test]
async fn an_unplug_asks_qemu_for_no_long_list_while_something_waits_for_it() {
    let host = Host::boot().await;
    let images = [Image::of(MIB), Image::of(MIB)];
    host.plug(images[0].path(), "/dev/xvda", &[]).await.report();
    host.plug(images[1].path(), "/dev/xvdb", &[]).await.report();
    let before = host.commands().len();
    let unplugged = host.verb("hot-unplug", &["--container", "c1", "--device-path", "/dev/xvda"]);
    assert_eq!(unplugged.await.report().body.volumes[0].size, MIB);
    let sent: Vec<_> = host.commands()[before..]
        .iter()
        .map(|command| command["execute"].as_str().unwrap().to_owned())
        .collect();
    let first = [
        "qmp_capabilities",
        "query-fdsets",
        "qom-list",
        "query-pci",
        "query-block-jobs",
        "query-block-exports",
        "x-debug-query-block-graph",
    ];
    let rest = [
        "qom-get",
        "device_del",
        "query-fdsets",
        "qom-list",
        "query-pci",
        "blockdev-del",
        "remove-fd",
        "remove-fd",
    ];
    assert_eq!(sent, [&first[..], &rest].concat());
}

/// What is known by its block node alone is found, too.
#[tokio::test]
async fn a_block_node_without_a_record_is_not_taken_for_gone() {
    let mut host = Host::boot().await;
    let id = "0123456789abcdef";
    let node = json!({"driver": "null-co", "node-name": format!("ecrblk-{id}-n")});
    host.execute("blockdev-add", node).await;
    let before = host.snapshot().await;
    host.verb("hot-unplug", &["--volume", id]).await.assert_fails("record_lost", 8);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_disk_without_a_record_is_refused() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    let sets = host.snapshot().await["query-fdsets"].clone();
    host.execute("remove-fd", json!({"fdset-id": sets[0]["fdset-id"]})).await;
    let before = host.snapshot().await;
    host.verb("hot-unplug", &["--volume", &id]).await.assert_fails("record_lost", 8);
    host.verb("hot-unplug", &C1).await.assert_fails("volume_not_found", 3);
    assert_eq!(host.snapshot().await, before);
    // The remedy that the error names.
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.verb("hot-unplug", &["--volume", &id]).await.report();
}

#[tokio::test]
async fn foreign_nodes_and_devices_are_never_touched() {
    let mut host = Host::boot().await;
    let foreign = Image::of(MIB);
    let file = json!({"driver": "file", "filename": foreign.path()});
    host.execute("blockdev-add", json!({"driver": "raw", "node-name": "theirs", "file": file}))
        .await;
    let device = json!({"driver": "scsi-hd", "id": "theirs0", "drive": "theirs", "bus": "scsi0.0", "scsi-id": 1, "lun": 1, "serial": "0123456789abcdef"});
    host.execute("device_add", device).await;
    let before = host.snapshot().await;
    let unknown = host.verb("hot-unplug", &["--volume", "0123456789abcdef"]).await.report();
    assert_eq!(unknown.result, Outcome::Unchanged);
    host.verb("hot-unplug", &C1).await.assert_fails("volume_not_found", 3);
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.verb("hot-unplug", &C1).await.report();
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_container_without_a_directory_is_found_by_its_record() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &["--sandbox", "s1", "--container", "c2"]).await.report();
    std::fs::remove_dir(host.path("sbs/s1/c2")).unwrap();
    host.verb("hot-unplug", &["--container", "c2", "--device-path", "/dev/xvda"]).await.report();
    assert_eq!(host.snapshot().await, clean);
    // Now no record names the container any more.
    host.verb("hot-unplug", &["--container", "c2", "--device-path", "/dev/xvda"])
        .await
        .assert_fails("container_not_found", 3);
}

#[tokio::test]
async fn a_qemu_that_ends_meanwhile_is_reported_and_leaves_nothing() {
    let mut host = Host::boot().await;
    let device = Loop::of(MIB);
    host.plug(device.path(), "/dev/xvda", &[]).await.report();
    host.agent.request_received.notified().await;
    *host.agent.hangs_on_detach.lock().unwrap() = true;
    let mut command = host.verb_command("hot-unplug", &[&C1[..], &["--timeout", "3s"]].concat());
    let ran = run_and_lose_qemu(&mut host, &mut command).await;
    ran.assert_fails("timed_out", 7);
    assert!(!device.is_claimed());
    host.verb("hot-unplug", &C1).await.assert_fails("qmp_unreachable", 14);
}

/// Runs `hot-unplug`, sends that many signals, and returns the exit code and the report.
async fn interrupted(host: &Host, signals: usize) -> (Option<i32>, Value) {
    let mut command =
        host.verb_command("hot-unplug", &[&C1[..], &["--timeout", "4s", "-v"]].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    host.agent.request_received.notified().await;
    let mut stderr = tokio::io::BufReader::new(child.stderr.take().unwrap());
    for _ in 0..signals {
        kill(pid, Signal::SIGTERM).unwrap();
        // Wait until it reports that it received the signal.
        let mut line = String::new();
        while !line.contains("second signal")
            && tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut line).await.unwrap() > 0
        {
        }
    }
    let output = child.wait_with_output().await.unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

#[tokio::test]
async fn a_first_signal_waits_for_the_guest_and_a_second_does_not() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    // Consume the notification of the hot-plug.
    host.agent.request_received.notified().await;
    *host.agent.hangs_on_detach.lock().unwrap() = true;
    let (code, report) = interrupted(&host, 2).await;
    assert_eq!((code, &report["error"]["reason"]), (Some(8), &json!("incomplete")), "{report}");
    assert!(report["error"]["message"].as_str().unwrap().contains("SIGTERM"), "{report}");
    let (code, report) = interrupted(&host, 1).await;
    assert_eq!((code, &report["error"]["reason"]), (Some(8), &json!("incomplete")), "{report}");
    assert!(report["error"]["message"].as_str().unwrap().contains("in time"), "{report}");
}

#[tokio::test]
async fn the_text_output_is_lines() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let id = host.plug(image.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    let human = |verb: &str, more: &[&str]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
        command
            .arg("--run-dir")
            .arg(host.path(""))
            .args(["block-volume", verb, "--sandbox", "s1"])
            .args(more);
        command
    };
    let ran = run(&mut human("hot-unplug", &C1)).await;
    assert!(
        ran.stdout.starts_with("unplugged ") && ran.stdout.contains(" from /dev/xvda in "),
        "{ran:?}"
    );
    let ran = run(&mut human("hot-unplug", &["--volume", &id])).await;
    assert!(ran.stdout.starts_with("unchanged: ") && ran.exit_code == Some(0), "{ran:?}");
}
