//! The audit log: one line for each operation, successful or not, in a file or in syslog.

use std::{fs, os::unix::net::UnixDatagram, path::Path};

use crate::common::{Host, run, shell::start, volume::Loop};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

#[tokio::test]
async fn every_operation_writes_a_line_with_caller_arguments_volume_and_result() {
    let host = Host::boot().await;
    let (first, second, log) = (Loop::of(MIB), Loop::of(MIB), host.path("audit.log"));
    let to_log = ["--audit-log", log.to_str().unwrap()];
    let volumes = [(first.path(), "/dev/xvda"), (second.path(), "/dev/xvdb")];
    let report = run(&mut host.command(&volumes, &to_log)).await.report();
    host.plug(Path::new("/dev/null"), "/dev/x\n", &to_log).await.assert_fails("source_kind", 6);
    host.verb("list", &to_log).await.listing();
    host.verb("hot-unplug", &[&["--device-path", "/dev/xvda"][..], &to_log].concat())
        .await
        .report();

    let (begun, lines): (Vec<_>, Vec<_>) =
        lines(&log).into_iter().partition(|line| line["phase"] == "begin");
    let results: Vec<_> = lines
        .iter()
        .map(|line| (line["result"].as_str().unwrap(), line["volume"]["device_path"].as_str()))
        .collect();
    let (a, b) = (Some("/dev/xvda"), Some("/dev/xvdb"));
    let expected = [
        ("attached", a),
        ("attached", b),
        ("error", None),
        ("listed", a),
        ("listed", b),
        ("detached", a),
    ];
    assert_eq!(results, expected);
    let commands: Vec<_> = begun.iter().map(|line| line["command"].as_str().unwrap()).collect();
    assert_eq!(commands, ["hot-plug", "hot-plug", "hot-unplug"], "a query has no beginning");
    for line in begun.iter().chain(&lines) {
        assert_eq!(line["uid"], 0, "{line}");
        assert!(
            line["caller"].as_str().unwrap().ends_with(&format!("({})", std::process::id())),
            "{line}"
        );
        assert!(
            line["arguments"][1].is_string() && line["time"].as_f64().unwrap() > 1.6e9,
            "{line}"
        );
    }
    assert_eq!((&begun[0]["sandbox"], &begun[0]["container"]), (&"s1".into(), &"c1".into()));
    let path = |volume: &Loop| volume.path().to_str().unwrap().to_owned();
    let requested = serde_json::json!([
        {"source": path(&first), "device_path": "/dev/xvda"},
        {"source": path(&second), "device_path": "/dev/xvdb"},
    ]);
    assert_eq!(begun[0]["requested"], requested);
    assert_eq!(begun[2]["requested"], serde_json::json!([{"device_path": "/dev/xvda"}]));
    // The records of a run are known by its ID.
    for (beginning, end) in [(0, 0), (0, 1), (1, 2), (2, 5)] {
        assert_eq!(begun[beginning]["run"], lines[end]["run"]);
    }
    assert_ne!(begun[0]["run"], begun[1]["run"]);
    let plugged = &lines[0];
    assert_eq!((&plugged["sandbox"], &plugged["exit_code"]), (&"s1".into(), &0.into()));
    assert_eq!(plugged["volume"]["id"], report.body.volumes[0].id);
    assert_eq!(plugged["volume"]["source_device"], first.path().to_str().unwrap());
    assert_eq!(plugged["volume"]["device_number"], report.body.volumes[0].device_number);
    assert_eq!((&lines[2]["reason"], &lines[2]["exit_code"]), (&"source_kind".into(), &6.into()));
    // Arguments are escaped, so that they never make a second line.
    assert!(
        lines[2]["arguments"].as_array().unwrap().contains(&"/dev/x\\n".into()),
        "{}",
        lines[2]
    );
}

#[tokio::test]
async fn syslog_gets_the_same_lines_with_a_priority() {
    let host = Host::boot().await;
    let (volume, socket) = (Loop::of(MIB), host.path("log"));
    let syslog = UnixDatagram::bind(&socket).unwrap();
    let to_syslog = ["--audit-log", socket.to_str().unwrap()];
    let received = || {
        let mut buffer = vec![0; 1 << 16];
        let length = syslog.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    host.plug(volume.path(), "/dev/xvda", &to_syslog).await.report();
    let line = received();
    assert!(line.starts_with("<85>ecr-runtime[") && line.contains(r#""phase":"begin""#), "{line}");
    let line = received();
    assert!(
        line.starts_with("<85>ecr-runtime[") && line.contains(r#""result":"attached""#),
        "{line}"
    );
    host.plug(volume.path(), "/dev/xvdb", &to_syslog).await.assert_fails("volume_taken", 4);
    assert!(received().contains(r#""phase":"begin""#));
    let line = received();
    assert!(
        line.starts_with("<84>ecr-runtime[") && line.contains(r#""reason":"volume_taken""#),
        "{line}"
    );
    host.verb("list", &to_syslog).await.listing();
    assert!(received().starts_with("<86>ecr-runtime["));
}

#[tokio::test]
async fn nothing_is_changed_if_the_audit_log_cannot_be_written() {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let volume = Loop::of(MIB);
    let ran = host.plug(volume.path(), "/dev/xvda", &["--audit-log", "/nonexistent/log"]).await;
    ran.assert_fails("system", 1);
    assert!(ran.stdout.contains("/nonexistent/log"), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_run_that_is_killed_leaves_its_beginning() {
    let host = Host::boot().await;
    let (volume, log) = (Loop::of(MIB), host.path("audit.log"));
    let to_log = ["--audit-log", log.to_str().unwrap()];
    host.plug(volume.path(), "/dev/xvda", &to_log).await.report();
    host.agent.request_received.notified().await;
    *host.agent.hangs_on_detach.lock().unwrap() = true;
    let unplug = [&["--device-path", "/dev/xvda"][..], &to_log].concat();
    let (mut child, pid) = start(&mut host.verb_command("hot-unplug", &unplug));
    host.agent.request_received.notified().await;
    kill(pid, Signal::SIGKILL).unwrap();
    child.wait().await.unwrap();
    let lines = lines(&log);
    let last = lines.last().unwrap();
    assert_eq!(
        (lines.len(), &last["phase"], &last["command"]),
        (3, &"begin".into(), &"hot-unplug".into())
    );
}
