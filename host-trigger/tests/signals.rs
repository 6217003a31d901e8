//! Signals in the middle of a verb: the first one lets it undo or finish what it works on, the
//! second one ends it at once and says what is left for `repair`.

mod common;

use std::process::Stdio;

use common::{Host, guest::Behaviour, volume::Loop};
use host_trigger::repaired::{Did, Whole};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;
use serde_json::Value;
use tokio::process::{Child, Command};

const MIB: u64 = 1 << 20;

fn start(command: &mut Command) -> (Child, Pid) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    (child, pid)
}

async fn ended(child: Child) -> (Option<i32>, Value) {
    let output = child.wait_with_output().await.unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

/// Waits until the command says something on standard error that holds `text`.
async fn says(child: &mut Child, text: &str) {
    let mut stderr = tokio::io::BufReader::new(child.stderr.as_mut().unwrap());
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut stderr, &mut line).await.unwrap();
        assert!(read > 0, "it never said {text:?}");
    }
}

/// Whatever is told to be left, repair ends it.
async fn assert_repaired(host: &mut Host, clean: &Value, device: &Loop) {
    *host.guest.hangs_at_detach.lock().unwrap() = false;
    host.guest.behave(Behaviour::Works);
    assert_eq!(host.verb("repair", &[]).await.repaired().result, Whole::Repaired);
    assert_eq!(host.snapshot().await, *clean);
    assert!(!device.is_claimed());
}

#[rstest]
#[tokio::test]
async fn a_second_signal_ends_the_undo_of_a_plug(
    #[values(Signal::SIGINT, Signal::SIGTERM)] signal: Signal,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    host.guest.behave(Behaviour::Hangs);
    *host.guest.hangs_at_detach.lock().unwrap() = true;
    let (child, pid) = start(&mut host.command(&[(device.path(), "/dev/xvda")], &[]));
    for _ in ["attach", "detach"] {
        host.guest.asked.notified().await;
        kill(pid, signal).unwrap();
    }
    let (code, told) = ended(child).await;
    let message = told["error"]["message"].as_str().unwrap();
    assert_eq!((code, &told["error"]["reason"]), (Some(8), &"incomplete".into()), "{told}");
    for word in
        [signal.as_str(), "descriptors, block node, device in QEMU", "what the guest has of it"]
    {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(
        message.contains(&host.verb("list", &[]).await.listing().volumes[0].volume.id),
        "{message}"
    );
    host.guest.attached.lock().unwrap().clear();
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
    let id = host.plug(device.path(), "/dev/xvda", &[]).await.report().volumes[0].id.clone();
    host.guest.gone.lock().unwrap().push("c1".into());
    host.guest.asked.notified().await;
    *host.guest.hangs_at_detach.lock().unwrap() = true;
    let (mut child, pid) = start(&mut host.verb_command(verb, &[which, &["-v"]].concat()));
    host.guest.asked.notified().await;
    kill(pid, Signal::SIGTERM).unwrap();
    says(&mut child, "second signal").await;
    kill(pid, Signal::SIGINT).unwrap();
    let (code, told) = ended(child).await;
    let message = told["error"]["message"].as_str().unwrap();
    assert_eq!(code, Some(8), "{told}");
    assert!(message.contains("interrupted by SIGTERM"), "the first one is the cause: {message}");
    assert!(
        message.contains(&format!("volume {id}: descriptors, block node, device in QEMU")),
        "{message}"
    );
    assert_repaired(&mut host, &clean, &device).await;
}

/// The volume that is worked on is finished, the others are left for the next time.
#[tokio::test]
async fn a_first_signal_lets_a_repair_finish_one_volume() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let (first, second) = (Loop::of(MIB), Loop::of(MIB));
    host.plug(first.path(), "/dev/xvda", &[]).await.report();
    host.plug(second.path(), "/dev/xvdb", &[]).await.report();
    host.guest.gone.lock().unwrap().push("c1".into());
    host.guest.asked.notified().await;
    *host.guest.detach_delay.lock().unwrap() = std::time::Duration::from_millis(500);
    let (mut child, pid) = start(&mut host.verb_command("repair", &["-v"]));
    host.guest.asked.notified().await;
    kill(pid, Signal::SIGINT).unwrap();
    says(&mut child, "second signal").await;
    let (code, told) = ended(child).await;
    assert_eq!((code, &told["error"]["reason"]), (Some(130), &"interrupted".into()), "{told}");
    let did: Vec<_> =
        told["volumes"].as_array().unwrap().iter().map(|told| told["did"].clone()).collect();
    assert_eq!(did, [serde_json::json!(Did::Undone), serde_json::json!(Did::Failed)], "{told}");
    *host.guest.detach_delay.lock().unwrap() = std::time::Duration::ZERO;
    assert_repaired(&mut host, &clean, &first).await;
    assert!(!second.is_claimed());
}
