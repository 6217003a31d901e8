//! A second signal ends an unplug, a repair or a rollback immediately, in the middle of a step. The
//! command reports what is left, `list` shows it, and `repair` completes it.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use vm_harness::{EcrRuntime, Finished, Sandbox, Snapshot, Volume};

use super::{
    MIB,
    host_failures::claim_is_free,
    hot_unplug::{at, verb},
    repair::{only, repair, state},
    sandbox,
};

/// Ten minutes: longer than any wait of this test.
const ENDLESS: &str = "delay:600000";

/// Starts a command that stays at the fault point `point`, and ends it with two signals.
async fn ended_by_two_signals(command: &EcrRuntime, point: &str) -> Finished {
    let mut child = command.start();
    let process = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut wait_for_line = async |text: &str| {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = stderr.read_line(&mut line).await.unwrap();
            assert!(read > 0, "it never printed {text:?}");
        }
    };
    wait_for_line(point).await;
    kill(process, Signal::SIGTERM).unwrap();
    wait_for_line("a second signal ends it").await;
    assert!(child.try_wait().unwrap().is_none(), "the first signal must not end it");
    kill(process, Signal::SIGINT).unwrap();
    let second = Instant::now();
    let finished = Finished::new(&child.wait_with_output().await.unwrap(), second.elapsed());
    assert!(
        finished.elapsed < Duration::from_secs(5),
        "it must end immediately: {:?}",
        finished.elapsed
    );
    finished
}

/// Checks that the error names the volume and the parts that are left, and that `list` agrees.
async fn assert_reports_what_is_left(sandbox: &Sandbox, finished: &Finished, id: &str) {
    let (reason, message) = finished.failed_with(8);
    assert_eq!(reason, "incomplete", "{message}");
    for text in ["second signal", "SIGTERM", id, "descriptors, block node"] {
        assert!(message.contains(text), "{text}: {message}");
    }
    assert_eq!(state(sandbox).await, "incomplete");
}

#[rstest]
#[tokio::test]
async fn unplug_and_repair_ended_by_a_second_signal_are_completed_by_repair(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(MIB);
    let at = at(&container, "/dev/xvda");
    let delayed_at = |point: &str| sandbox.ecr_runtime_with_faults(&format!("{point}={ENDLESS}"));

    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let unplug = verb(delayed_at("after-detach"), &sandbox, "hot-unplug", &at).args(["--verbose"]);
    let finished = ended_by_two_signals(&unplug, "after-detach").await;
    assert_reports_what_is_left(&sandbox, &finished, plugged.id()).await;

    // The repair of what is left is ended in the same way.
    let repairing = verb(delayed_at("before-detach"), &sandbox, "repair", &["--verbose"]);
    let finished = ended_by_two_signals(&repairing, "before-detach").await;
    assert_reports_what_is_left(&sandbox, &finished, plugged.id()).await;

    let repaired = repair(&sandbox, 0, &[]).await;
    assert_eq!(only(&repaired), ["incomplete", "completed", "gone"], "{repaired}");
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}
