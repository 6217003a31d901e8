//! `hot-plug` against a real QEMU: what is plugged, what a repeated call does, and the output.

use crate::common::{
    Host,
    fake_agent::OnAttach,
    records, run,
    volume::{Image, Loop},
};
use host_trigger::{
    output::envelope::Outcome,
    qemu::record::{Access, Record},
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_loop_device_is_plugged_claimed_and_recorded() {
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    let report =
        host.plug(volume.path(), "/dev/xvda", &["--uid", "7", "--mode", "600"]).await.report();
    assert_eq!(report.result, Outcome::Attached);
    let plugged = &report.body.volumes[0];
    assert_eq!(
        (plugged.sandbox.as_str(), plugged.container.as_str(), plugged.size),
        ("s1", "c1", MIB)
    );
    assert_eq!(
        (plugged.guest_device.as_str(), plugged.device_number.as_str()),
        ("sd0\\u{1b}", "8:0")
    );
    assert!(volume.is_claimed());

    let attachment = host.agent.attachment(&plugged.id).unwrap();
    assert_eq!(attachment.controller, "0000:00:01.0");
    assert_eq!((attachment.uid, attachment.gid, attachment.mode), (7, 0, 0o600));
    assert_eq!(attachment.address.target, plugged.scsi.target);

    let device = format!("/machine/peripheral/ecrblk-{}", plugged.id);
    for (property, value) in [
        ("serial", json!(plugged.id)),
        ("scsi-id", json!(plugged.scsi.target)),
        ("lun", json!(plugged.scsi.lun)),
        ("share-rw", json!(false)),
        ("werror", json!("report")),
        ("rerror", json!("report")),
        ("logical_block_size", json!(512)),
    ] {
        assert_eq!(
            host.query("qom-get", json!({"path": device, "property": property})).await,
            value,
            "{property}"
        );
    }
    let snapshot = host.snapshot().await;
    let node = &snapshot["query-named-block-nodes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["drv"] == "raw")
        .unwrap();
    assert_eq!((&node["ro"], &node["cache"]["direct"]), (&json!(false), &json!(true)));
    let records = records(&snapshot);
    assert_eq!(records.len(), 2);
    assert!(
        records.iter().any(|record| matches!(record, Record::Commit(commit) if commit.committed))
    );
    let is_intent = |record: &Record| matches!(record, Record::Intent(intent) if intent.path == "/dev/xvda" && intent.access == Access::ReadWrite);
    assert!(records.iter().any(is_intent));
}

#[tokio::test]
async fn the_stages_are_reported_in_order() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let report = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let names: Vec<_> =
        report.timings_us.as_ref().unwrap().0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "find",
            "lock",
            "agent_address",
            "agent_dial",
            "qmp_connect",
            "source",
            "prepare",
            "reconcile",
            "blockdev_add",
            "ready",
            "wait_ready",
            "device_add",
            "prepared",
            "guest_scan",
            "attach",
            "commit",
            "total"
        ]
    );
}

#[tokio::test]
async fn a_repeat_is_unchanged_and_other_options_conflict() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let before = host.snapshot().await;

    let again = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(again.result, Outcome::Unchanged);
    host.plug(image.path(), "/dev/xvda", &["--read-only"]).await.assert_fails("other_options", 4);
    host.plug(image.path(), "/dev/xvda", &["--gid", "5"]).await.assert_fails("other_options", 4);
    host.plug(image.path(), "/dev/xvdb", &[]).await.assert_fails("volume_taken", 4);
    let other = ["--sandbox", "s1", "--container", "c2"];
    host.plug(image.path(), "/dev/xvda", &other).await.assert_fails("volume_taken", 4);
    let second = Image::of(MIB);
    host.plug(second.path(), "/dev/xvda", &[]).await.assert_fails("path_taken", 4);
    assert_eq!(host.snapshot().await, before);
    assert_eq!(host.agent.attached_paths(), ["/dev/xvda"]);
}

#[tokio::test]
async fn what_the_guest_lost_is_restored_by_a_repeated_hot_plug() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let first = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.agent.attached.lock().unwrap().clear();
    let second = host.plug(image.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(
        (second.result, &second.body.volumes[0].id),
        (Outcome::Attached, &first.body.volumes[0].id)
    );
    assert_eq!(records(&host.snapshot().await).len(), 2);
}

#[tokio::test]
async fn a_device_with_4096_byte_blocks_has_them_in_the_guest() {
    let mut host = Host::boot().await;
    let volume = Loop::with(MIB, &["--sector-size", "4096"]);
    let report = host.plug(volume.path(), "/dev/xvda", &[]).await.report();
    let path = format!("/machine/peripheral/ecrblk-{}", report.body.volumes[0].id);
    for property in ["logical_block_size", "physical_block_size"] {
        assert_eq!(host.query("qom-get", json!({"path": path, "property": property})).await, 4096);
    }
}

#[tokio::test]
async fn a_read_only_volume_is_read_only_in_qemu() {
    let mut host = Host::boot().await;
    let volume = Loop::with(MIB, &["--read-only"]);
    let image = Image::of(MIB);
    let volumes = [(volume.path(), "/dev/xvda"), (image.path(), "/dev/xvdb")];
    let report = run(&mut host.command(&volumes, &["--read-only"])).await.report();
    assert!(report.body.volumes.iter().all(|volume| volume.read_only));
    let nodes = host.snapshot().await["query-named-block-nodes"].clone();
    assert!(nodes.as_array().unwrap().iter().all(|node| node["ro"] == true));
}

#[tokio::test]
async fn sixteen_volumes_of_one_call_are_all_plugged_or_none() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let images: Vec<_> = (1..=16).map(|n| Image::of(n * MIB)).collect();
    let paths: Vec<_> = (1..=16).map(|n| format!("/dev/xvd{n}")).collect();
    let volumes: Vec<_> =
        images.iter().map(Image::path).zip(paths.iter().map(String::as_str)).collect();

    host.agent.set_on_attach(OnAttach::ReportsFewerVolumes);
    run(&mut host.command(&volumes, &[])).await.assert_fails("agent_answer", 1);
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());

    host.agent.set_on_attach(OnAttach::Succeeds);
    let report = run(&mut host.command(&volumes, &[])).await.report();
    let sizes: Vec<_> = report.body.volumes.iter().map(|volume| volume.size / MIB).collect();
    assert_eq!(sizes, (1..=16).collect::<Vec<_>>());
    assert_eq!(host.agent.attached_paths().len(), 16);
    assert_eq!(records(&host.snapshot().await).len(), 32);
}

#[tokio::test]
async fn a_call_with_repeated_or_unpaired_volumes_is_refused() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let (one, two) = (Image::of(MIB), Image::of(MIB));
    let twice = [(one.path(), "/dev/a"), (one.path(), "/dev/b")];
    // Each of the two sees the other's descriptor, so either reason is right.
    let ran = run(&mut host.command(&twice, &[])).await;
    assert!(["repeated", "source_held"].contains(&ran.failure().reason.as_str()), "{ran:?}");
    let same_path = [(one.path(), "/dev/a"), (two.path(), "/dev/a")];
    run(&mut host.command(&same_path, &[])).await.assert_fails("repeated", 2);
    host.plug(one.path(), "/dev/a", &["--block-volume", "/dev/loop0"])
        .await
        .assert_fails("unpaired", 2);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn runs_on_one_sandbox_take_turns() {
    let mut host = Host::boot().await;
    let images: Vec<_> = (0..8).map(|_| Image::of(MIB)).collect();
    let mut runs = tokio::task::JoinSet::new();
    for (index, image) in images.iter().enumerate() {
        let mut command = host.command(&[(image.path(), &format!("/dev/xvd{index}"))], &[]);
        runs.spawn(async move { run(&mut command).await });
    }
    for ran in runs.join_all().await {
        assert_eq!(ran.report().result, Outcome::Attached);
    }
    assert_eq!(records(&host.snapshot().await).len(), 16);
}

#[tokio::test]
async fn the_text_output_is_lines_and_the_json_output_one_object() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let human = host.plug(image.path(), "/dev/xvda", &["--output", "human"]);
    let usage = human.await;
    // The option is given twice (the first one asks for JSON), which is a usage error.
    usage.assert_fails("usage", 2);

    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(host.path("")).args([
        "block-volume",
        "hot-plug",
        "--sandbox",
        "s1",
        "--container",
        "c1",
    ]);
    command.arg("--block-volume").arg(image.path()).args(["--device-path", "/dev/xvda"]);
    command.arg("--audit-log").arg(host.path("audit.log"));
    let plugged = run(&mut command).await;
    assert!(plugged.stdout.starts_with("plugged ") && plugged.stderr.is_empty(), "{plugged:?}");
    let refused = run(command.arg("--read-only")).await;
    assert!(refused.stdout.is_empty(), "{refused:?}");
    assert!(
        refused.stderr.starts_with("error: volume ") && refused.stderr.contains("\nremedy: "),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_timeout_beyond_the_limit_of_the_protocol_is_no_error() {
    let host = Host::boot().await;
    host.plug(Image::of(MIB).path(), "/dev/xvda", &["--timeout", "60m"]).await.report();
}

#[tokio::test]
async fn a_path_that_is_not_utf8_is_plugged_and_reported() {
    use std::os::unix::ffi::OsStrExt;
    let host = Host::boot().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(std::ffi::OsStr::from_bytes(b"odd\xff\x1b[31m.img"));
    std::fs::File::create(&path).unwrap().set_len(MIB).unwrap();
    let report = host.plug(&path, "/dev/xvda", &[]).await.report();
    assert!(report.body.volumes[0].source.to_string_lossy().contains("odd\u{fffd}"), "{report:?}");
    let again =
        run(host.command(&[(&path, "/dev/xvdb")], &[]).args(["--output", "json", "--nonsense"]))
            .await;
    again.assert_fails("usage", 2);
}

/// The agent's address from the shim takes precedence over the one in `persist.json`.
#[tokio::test]
async fn an_outdated_state_file_is_ignored() {
    let host = Host::boot().await;
    let silent = host.path("silent.sock");
    // The kernel accepts the connection; no process reads from it.
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let state = json!({"AgentState": {"URL": format!("unix://{}", silent.display())}});
    std::fs::write(host.path("sbs/s1/persist.json"), state.to_string()).unwrap();
    let shim = tokio::net::UnixListener::bind(host.path("sbs/s1/shim-monitor.sock")).unwrap();
    let address = format!("unix://{}", host.path("agent.sock").display());
    tokio::spawn(async move {
        let (mut stream, _) = shim.accept().await.unwrap();
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{address}", address.len());
        // The request comes in one piece, and a client accepts no response ahead of it.
        assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
        stream.write_all(answer.as_bytes()).await.unwrap();
        // Keep the connection open: the client closes it.
        std::future::pending::<()>().await;
    });
    let image = Image::of(MIB);
    let report = host.plug(image.path(), "/dev/xvda", &["--timeout", "20s"]).await.report();
    assert_eq!(report.result, Outcome::Attached);
}
