//! A second signal ends an unplug, a repair or an undo at once, in the middle of its work: it says
//! what is left, `list` shows it, and `repair` ends it.

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

/// As long as nobody waits.
const FOR_EVER: &str = "delay:600000";

/// Starts a command that works at `point` for ever, and ends it by two signals.
async fn ended_by_two_signals(command: &EcrRuntime, point: &str) -> Finished {
    let mut child = command.start();
    let process = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut until_it_says = async |text: &str| {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = stderr.read_line(&mut line).await.unwrap();
            assert!(read > 0, "it never said {text:?}");
        }
    };
    until_it_says(point).await;
    kill(process, Signal::SIGTERM).unwrap();
    until_it_says("a second signal ends it").await;
    assert!(child.try_wait().unwrap().is_none(), "the first signal does not end it");
    kill(process, Signal::SIGINT).unwrap();
    let second = Instant::now();
    let finished = Finished::new(&child.wait_with_output().await.unwrap(), second.elapsed());
    assert!(finished.elapsed < Duration::from_secs(5), "it ends at once: {:?}", finished.elapsed);
    finished
}

/// The volume and its parts are named, and so they are.
async fn assert_tells_what_is_left(sandbox: &Sandbox, finished: &Finished, id: &str) {
    let (reason, message) = finished.failed_with(8);
    assert_eq!(reason, "incomplete", "{message}");
    for word in ["second signal", "SIGTERM", id, "descriptors, block node, device in QEMU"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    assert_eq!(state(sandbox).await, "incomplete");
}

#[rstest]
#[tokio::test]
async fn unplug_and_repair_that_a_second_signal_ends_are_ended_by_repair(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let volume = Volume::loop_device(MIB);
    let at = at(&container, "/dev/xvda");
    let at_work = |point: &str| sandbox.ecr_runtime_with_faults(&format!("{point}={FOR_EVER}"));

    let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    let unplug = verb(at_work("after-detach"), &sandbox, "hot-unplug", &at).args(["--verbose"]);
    let finished = ended_by_two_signals(&unplug, "after-detach").await;
    assert_tells_what_is_left(&sandbox, &finished, plugged.id()).await;

    // A repair of that, which goes the same way.
    let mending = verb(at_work("before-detach"), &sandbox, "repair", &["--verbose"]);
    let finished = ended_by_two_signals(&mending, "before-detach").await;
    assert_tells_what_is_left(&sandbox, &finished, plugged.id()).await;

    let repaired = repair(&sandbox, 0, &[]).await;
    assert_eq!(only(&repaired), ["incomplete", "completed", "gone"], "{repaired}");
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}
