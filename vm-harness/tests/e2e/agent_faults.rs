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
                Rule::on(reply_to("Probe"), Fault::Split(3)),
                Rule::on(command("Attach"), Fault::Split(7)),
                Rule::on(reply_to("Attach"), Fault::Split(1)),
            ],
        ),
        ("late reply", vec![Rule::on(reply_to("Attach"), Fault::Delay(LATE))]),
        (
            "duplicated replies",
            vec![
                Rule::on(reply_to("Probe"), Fault::Twice),
                Rule::on(reply_to("Attach"), Fault::Twice),
            ],
        ),
        ("duplicated request", vec![Rule::on(command("Attach"), Fault::Twice)]),
    ] {
        let call = sandbox.hot_plug_command(&container, &[(&volume, "/dev/xvda")]);
        let (finished, _) = through_proxy(&sandbox, call, rules).await;
        assert_plugged(&finished, what, &sandbox, &container, &volume).await;
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
    let plug = through_proxy(&sandbox, call, vec![Rule::on(command("Attach"), Fault::Twice)]);
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
    let all: &[&str] = &["Probe", "Attach", "Detach"];
    for (rule, reason, calls) in [
        (Rule::on(command("CONNECT"), Fault::Cut), unreachable, &all[..0]),
        (Rule::on(reply_to("CONNECT"), Fault::CutAfter(2)), unreachable, &all[..0]),
        (Rule::on(command("Probe"), Fault::Cut), lost, &all[..1]),
        (Rule::on(reply_to("Probe"), Fault::CutAfter(11)), lost, &all[..1]),
        // The guest did not receive the request.
        (Rule::on(command("Attach"), Fault::Cut), lost, all),
        (Rule::on(command("Attach"), Fault::CutAfter(30)), lost, all),
        // The guest executed the request, and its reply is lost, truncated or garbled.
        (Rule::on(reply_to("Attach"), Fault::Cut), lost, all),
        (Rule::on(reply_to("Attach"), Fault::CutAfter(10)), lost, all),
        (Rule::on(reply_to("Attach"), Fault::CutAfter(25)), lost, all),
        (Rule::on(reply_to("Attach"), garbled()), lost, all),
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
        through_proxy(&sandbox, call, vec![Rule::on(reply_to("Attach"), fault)]).await;
    let (reason, message) = finished.failed_with(7);
    assert_eq!(reason, "timed_out", "{message}");
    assert_eq!(methods, ["Probe", "Attach", "Detach"]);
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
        Rule::on(reply_to("Attach"), Fault::Cut),
        Rule::on(command("Detach"), Fault::Cut).each(),
    ];
    let (finished, methods) = through_proxy(&sandbox, call, rules).await;
    let (reason, message) = finished.failed_with(8);
    assert_eq!(reason, "incomplete", "{message}");
    assert!(!methods.is_empty());
    assert!(!claim_is_free(&volume), "QEMU keeps what the guest may be using");
    assert_eq!(repair(&sandbox, 0, &[]).await["result"], "repaired");
    // The guest had completed the attach: repair completes the hot-plug.
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
    for (rule, status) in [
        (Rule::on(command("Detach"), Fault::Cut), 0),
        (Rule::on(reply_to("Detach"), Fault::Cut), 0),
        (Rule::on(reply_to("Detach"), Fault::CutAfter(12)), 0),
        (Rule::on(command("Detach"), Fault::Twice), 0),
        (Rule::on(reply_to("Detach"), Fault::Cut).each(), 8),
        (Rule::on(reply_to("Detach"), Fault::Drop), 8),
    ] {
        let what = rule.to_string();
        sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
        let (finished, methods) = through_proxy(&sandbox, call(), vec![rule]).await;
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
