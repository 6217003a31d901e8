//! Signals during a command. After the first one the command rolls back or finishes the current
//! step. The second one ends it immediately; the error says what is left for `repair`.

use crate::common::{Host, fake_agent::OnAttach, shell::start, volume::Loop};
use host_trigger::{ops::recovery::Action, output::envelope::Outcome};
use nix::sys::signal::{Signal, kill};
use rstest::rstest;
use serde_json::Value;
use tokio::process::Child;

const MIB: u64 = 1 << 20;

/// Waits for the end. Returns the exit code and the report.
async fn ended(child: Child) -> (Option<i32>, Value) {
    let output = child.wait_with_output().await.unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// Waits until the command writes a line with `text` to standard error.
async fn await_line(child: &mut Child, text: &str) {
    let mut stderr = tokio::io::BufReader::new(child.stderr.as_mut().unwrap());
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut line).await.unwrap();
        assert!(read > 0, "standard error ended without {text:?}");
    }
}

/// Asserts that `repair` removes everything that was left.
async fn assert_repaired(host: &mut Host, clean: &Value, device: &Loop) {
    *host.agent.hangs_on_detach.lock().unwrap() = false;
    host.agent.set_on_attach(OnAttach::Succeeds);
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Outcome::Repaired);
    assert_eq!(host.snapshot().await, *clean);
    assert!(!device.is_claimed());
}

#[rstest]
#[tokio::test]
async fn a_second_signal_ends_the_rollback_of_a_hot_plug(
    #[values(Signal::SIGINT, Signal::SIGTERM)] signal: Signal,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    host.agent.set_on_attach(OnAttach::Hangs);
    *host.agent.hangs_on_detach.lock().unwrap() = true;
    let (child, pid) = start(&mut host.command(&[(device.path(), "/dev/xvda")], &[]));
    for _ in ["attach", "detach"] {
        host.agent.request_received.notified().await;
        kill(pid, signal).unwrap();
    }
    let (code, report) = ended(child).await;
    let message = report["error"]["message"].as_str().unwrap();
    assert_eq!((code, &report["error"]["reason"]), (Some(8), &"incomplete".into()), "{report}");
    for part in [
        signal.as_str(),
        "descriptors, block node, device in QEMU",
        "its disk and device node in the guest",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(
        message.contains(&host.verb("list", &[]).await.listing().body.volumes[0].volume.id),
        "{message}"
    );
    host.agent.attached.lock().unwrap().clear();
    assert_repaired(&mut host, &clean, &device).await;
}

#[rstest]
#[case::unplug("hot-unplug", &["--device-path", "/dev/xvda"])]
#[case::repair("repair", &[])]
#[tokio::test]
async fn a_second_signal_ends_a_removal(#[case] verb: &str, #[case] which: &[&str]) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    let id = host.plug(device.path(), "/dev/xvda", &[]).await.report().body.volumes[0].id.clone();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    host.agent.request_received.notified().await;
    *host.agent.hangs_on_detach.lock().unwrap() = true;
    let (mut child, pid) = start(&mut host.verb_command(verb, &[which, &["-v"]].concat()));
    host.agent.request_received.notified().await;
    kill(pid, Signal::SIGTERM).unwrap();
    await_line(&mut child, "second signal").await;
    kill(pid, Signal::SIGINT).unwrap();
    let (code, report) = ended(child).await;
    let message = report["error"]["message"].as_str().unwrap();
    assert_eq!(code, Some(8), "{report}");
    assert!(message.contains("interrupted by SIGTERM"), "the first signal is the cause: {message}");
    assert!(
        message.contains(&format!("volume {id}: descriptors, block node, device in QEMU")),
        "{message}"
    );
    assert_repaired(&mut host, &clean, &device).await;
}

/// The other volumes are left for the next run.
#[tokio::test]
async fn after_a_first_signal_repair_finishes_the_current_volume() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let (first, second) = (Loop::of(MIB), Loop::of(MIB));
    host.plug(first.path(), "/dev/xvda", &[]).await.report();
    host.plug(second.path(), "/dev/xvdb", &[]).await.report();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    host.agent.request_received.notified().await;
    *host.agent.detach_delay.lock().unwrap() = std::time::Duration::from_millis(500);
    let (mut child, pid) = start(&mut host.verb_command("repair", &["-v"]));
    host.agent.request_received.notified().await;
    kill(pid, Signal::SIGINT).unwrap();
    await_line(&mut child, "second signal").await;
    let (code, report) = ended(child).await;
    assert_eq!((code, &report["error"]["reason"]), (Some(130), &"interrupted".into()), "{report}");
    let did: Vec<_> = report["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| volume["action"].clone())
        .collect();
    assert_eq!(
        did,
        [serde_json::json!(Action::RolledBack), serde_json::json!(Action::Failed)],
        "{report}"
    );
    *host.agent.detach_delay.lock().unwrap() = std::time::Duration::ZERO;
    assert_repaired(&mut host, &clean, &first).await;
    assert!(!second.is_claimed());
}
