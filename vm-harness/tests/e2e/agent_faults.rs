//! The agent behind a proxy that delays, cuts or repeats messages. After a lost reply the host asks
//! the guest to release the volume before it removes anything from QEMU. A rollback that fails is
//! reported and repaired.

use std::time::Duration;

use rstest::rstest;
use vm_harness::{
    AgentProxy, EcrRuntime, Fault, Finished, Rule, Sandbox, Snapshot, Volume, command, reply_to,
};

use super::{
    MIB,
    host_failures::claim_is_free,
    hot_unplug::{at, unplug, verb},
    qmp_faults::{assert_plugged, short},
    repair::repair,
    sandbox, sandbox_with_faults, set_guest_faults,
};

const LATE: Duration = Duration::from_millis(800);

/// Runs `call` with the agent behind a proxy with these rules, and checks that each rule applied.
/// Also returns the methods that were called.
async fn through_proxy(
    sandbox: &Sandbox,
    call: EcrRuntime,
    rules: Vec<Rule>,
) -> (Finished, Vec<String>) {
    let vsock = sandbox.run_directory().vm().join("vm.vsock");
    let proxy = AgentProxy::start_with(&vsock, rules).unwrap();
    let finished = call.args(["--agent", &proxy.address(sandbox)]).run().await;
    // If a rule did not apply, the command ended before. Its output shows why.
    println!("{}{}", finished.stdout, finished.stderr);
    proxy.assert_all_met();
    (finished, proxy.methods())
}

#[rstest]
#[tokio::test]
async fn unusual_but_valid_messages_do_not_break_a_plug(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for (what, rules) in [
        ("late connection", vec![Rule::on(reply_to("CONNECT"), Fault::Delay(LATE))]),
        (
            "messages in pieces",
            vec![
                // In the other direction it must not be split: vhost-device-vsock takes the result
                // of its first read for the whole line.
                Rule::on(reply_to("CONNECT"), Fault::Split(1)),
                Rule::on(command("Plug.start"), Fault::Split(7)),
                Rule::on(reply_to("Plug.ready"), Fault::Split(3)),
                Rule::on(command("Plug.go"), Fault::Split(1)),
                Rule::on(reply_to("Plug.attached"), Fault::Split(1)),
            ],
        ),
        ("late readiness", vec![Rule::on(reply_to("Plug.ready"), Fault::Delay(LATE))]),
        ("late reply", vec![Rule::on(reply_to("Plug.attached"), Fault::Delay(LATE))]),
        ("late commit", vec![Rule::on(command("Plug.commit"), Fault::Delay(LATE))]),
        ("duplicated reply", vec![Rule::on(reply_to("Hold"), Fault::Twice)]),
    ] {
        let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
        let (finished, _) = through_proxy(&sandbox, call, rules).await;
        assert_plugged(&finished, what, &sandbox, &container, &volume).await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
}

/// Calls another method in place of `Plug`, which the agent does not have either: as an agent of a
/// version before the conversation.
fn without_conversation() -> Rule {
    let renamed = |frame: &[u8]| {
        let at = frame.windows(4).position(|bytes| bytes == b"Plug").unwrap();
        [&frame[..at], b"Plux", &frame[at + 4..]].concat()
    };
    Rule::on(command("Plug"), Fault::edit(renamed))
}

#[rstest]
#[tokio::test]
async fn agent_without_the_conversation_is_served_by_two_calls(#[future(awt)] sandbox: Sandbox) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    for rules in [vec![], vec![Rule::on(reply_to("Attach"), Fault::Delay(LATE))]] {
        let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
        let rules = [vec![without_conversation()], rules].concat();
        let (finished, methods) = through_proxy(&sandbox, call, rules).await;
        assert_eq!(methods, ["Hold", "Plug", "Probe", "Attach"]);
        assert_plugged(&finished, "two calls", &sandbox, &container, &volume).await;
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
    // Whether the guest executed a request without a reply is settled by Detach.
    for lost in [command("Attach"), reply_to("Attach")] {
        let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
        let rules = vec![without_conversation(), Rule::on(lost, Fault::Cut)];
        let (finished, methods) = through_proxy(&sandbox, call, rules).await;
        let (reason, message) = finished.failed_with(14);
        assert_eq!(reason, "agent_lost", "{message}");
        assert_eq!(methods.last().map(String::as_str), Some("Detach"));
        before.assert_unchanged(&sandbox, &[&container]).await;
    }
}

/// The second request arrives while the first one is processed. It waits for its turn, and finds
/// the volume attached.
#[rstest]
#[tokio::test]
async fn duplicated_request_is_executed_once(#[future(awt)] sandbox_with_faults: Sandbox) {
    let sandbox = sandbox_with_faults;
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    set_guest_faults(&sandbox, "attach-after-node=wait\n").await;
    let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let rules = vec![without_conversation(), Rule::on(command("Attach"), Fault::Twice)];
    let plug = through_proxy(&sandbox, call, rules);
    // The first request waits at the fault point in system call 230 (clock_nanosleep), the second
    // one waits in 202 (futex).
    let both =
        "until s=$(cat $(grep -lx block-volume /proc/1/task/*/comm | sed s/comm/syscall/)) &&
        echo \"$s\" | grep -q '^230 ' && echo \"$s\" | grep -q '^202 '; do sleep 0.01; done";
    let release = async {
        let wait = sandbox.observer().shell(both);
        sandbox
            .guest()
            .wait_for("the second request's turn", Duration::from_secs(5), wait)
            .await
            .unwrap();
        set_guest_faults(&sandbox, "").await;
    };
    let ((finished, _), ()) = tokio::join!(plug, release);
    assert_plugged(&finished, "duplicated request", &sandbox, &container, &volume).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn plug_that_loses_the_agent_is_rolled_back_in_the_guest_first(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let garbled = || Fault::edit(|frame| [&frame[..10], &vec![0xff; frame.len() - 10]].concat());
    let (unreachable, lost) = ("agent_unreachable", "agent_lost");
    let all: &[&str] = &["Hold", "Plug", "Detach"];
    for (rule, reason, calls) in [
        (Rule::on(command("CONNECT"), Fault::Cut), unreachable, &all[..0]),
        (Rule::on(reply_to("CONNECT"), Fault::CutAfter(2)), unreachable, &all[..0]),
        (Rule::on(command("Hold"), Fault::Cut), lost, &all[..1]),
        (Rule::on(command("Plug"), Fault::Cut), lost, &all[..2]),
        (Rule::on(command("Plug.start"), Fault::Cut), lost, &all[..2]),
        (Rule::on(reply_to("Plug.ready"), Fault::CutAfter(11)), lost, &all[..2]),
        // The guest does not hear that the disk is there.
        (Rule::on(command("Plug.go"), Fault::Cut), lost, all),
        (Rule::on(command("Plug.go"), Fault::CutAfter(5)), lost, all),
        // The guest has made the device node, and what it says is lost, truncated or garbled.
        (Rule::on(reply_to("Plug.prepared"), Fault::Cut), lost, all),
        (Rule::on(reply_to("Plug.prepared"), garbled()), lost, all),
        (Rule::on(reply_to("Plug.attached"), Fault::CutAfter(10)), lost, all),
        (Rule::on(reply_to("Plug.attached"), Fault::CutAfter(25)), lost, all),
        (Rule::on(command("Plug.commit"), Fault::Cut), lost, all),
        // The guest has committed, and the host does not know.
        (Rule::on(reply_to("Plug.end"), Fault::Cut), lost, all),
    ] {
        let what = format!("{rule}");
        let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
        let (finished, methods) = through_proxy(&sandbox, call, vec![rule]).await;
        let (reported, message) = finished.failed_with(14);
        assert_eq!(reported, reason, "{what}: {message}");
        assert_eq!(methods, calls, "{what}");
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{what}");
    }
    sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
}

#[rstest]
#[case::late(Fault::Delay(Duration::from_secs(60)))]
#[case::never(Fault::Drop)]
#[tokio::test]
async fn plug_whose_reply_comes_too_late_times_out_and_is_rolled_back(
    #[future(awt)] sandbox: Sandbox,
    #[case] fault: Fault,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let call =
        sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]).args(short(&sandbox));
    let (finished, methods) =
        through_proxy(&sandbox, call, vec![Rule::on(reply_to("Plug.attached"), fault)]).await;
    let (reason, message) = finished.failed_with(7);
    assert_eq!(reason, "timed_out", "{message}");
    // The guest waits for the commit, and says at its own deadline that it has rolled back.
    assert_eq!(methods, ["Hold", "Plug"]);
    before.assert_unchanged(&sandbox, &[&container]).await;
    assert!(claim_is_free(&volume));
}

/// Neither the reply nor the rollback request gets through. QEMU keeps the disk that the guest has,
/// and the error says so.
#[rstest]
#[tokio::test]
async fn rollback_that_cannot_reach_the_guest_is_reported_and_repaired(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
    let rules = vec![
        Rule::on(reply_to("Plug.end"), Fault::Cut),
        Rule::on(command("Detach"), Fault::Cut).each(),
    ];
    let (finished, methods) = through_proxy(&sandbox, call, rules).await;
    let (reason, message) = finished.failed_with(8);
    assert_eq!(reason, "incomplete", "{message}");
    assert!(!methods.is_empty());
    assert!(!claim_is_free(&volume), "QEMU keeps what the guest may be using");
    assert_eq!(repair(&sandbox, 0, &[]).await["result"], "unchanged");
    // The guest had completed the attach, and it is recorded.
    assert_eq!(container.read("/dev/xvda", 0..65536).await, volume.bytes(0..65536));
    unplug(&sandbox, &at(&container, "/dev/xvda")).await;
    before.assert_unchanged(&sandbox, &[&container]).await;
}

#[rstest]
#[tokio::test]
async fn unplug_that_loses_the_agent_retries_or_reports_what_may_be_left(
    #[future(awt)] sandbox: Sandbox,
) {
    let container = sandbox.start_container().await;
    let volume = Volume::loop_device(MIB);
    let before = Snapshot::of(&sandbox, &[&container]).await;
    let call = || {
        verb(sandbox.ecr_runtime(), &sandbox, "hot-unplug", &at(&container, "/dev/xvda"))
            .args(short(&sandbox))
    };
    let released = || reply_to("Unplug.released");
    for (rules, status) in [
        (vec![Rule::on(command("Unplug"), Fault::Cut)], 0),
        (vec![Rule::on(released(), Fault::Cut)], 0),
        (vec![Rule::on(released(), Fault::CutAfter(12))], 0),
        (vec![Rule::on(reply_to("Unplug"), Fault::Cut)], 0),
        (vec![Rule::on(reply_to("Unplug"), Fault::CutAfter(12))], 0),
        // A detach settles what the lost conversation has left open.
        (vec![Rule::on(released(), Fault::Cut), Rule::on(command("Detach"), Fault::Twice)], 0),
        (
            vec![Rule::on(released(), Fault::Cut), Rule::on(reply_to("Detach"), Fault::Cut).each()],
            8,
        ),
        (vec![Rule::on(released(), Fault::Cut), Rule::on(reply_to("Detach"), Fault::Drop)], 8),
    ] {
        let what = rules.iter().map(Rule::to_string).collect::<Vec<_>>().join(" ");
        sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        let (finished, methods) = through_proxy(&sandbox, call(), rules).await;
        assert_eq!(
            finished.status, status,
            "{what}: {}{} {methods:?}",
            finished.stdout, finished.stderr
        );
        if status == 8 {
            assert!(!claim_is_free(&volume), "{what}: QEMU keeps it");
            unplug(&sandbox, &at(&container, "/dev/xvda")).await;
        }
        before.assert_unchanged(&sandbox, &[&container]).await;
        assert!(claim_is_free(&volume), "{what}");
    }
}
