//! What a command inherits from its caller: signals that are ignored stay ignored, and few
//! descriptors are an error before anything is opened.

use std::{fs, process::Stdio};

use crate::common::{
    Host,
    fake_agent::OnAttach,
    run,
    shell::{after, run_to, start},
    volume::{Image, Loop},
};
use host_trigger::output::envelope::Outcome;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rstest::rstest;
use serde_json::Value;
use tokio::process::Command;

const MIB: u64 = 1 << 20;

/// Whether the process ignores `signal`.
fn ignores(pid: Pid, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (signal as i32 - 1) != 0
}

#[rstest]
#[case("INT", Signal::SIGINT, Signal::SIGTERM)]
#[case("TERM", Signal::SIGTERM, Signal::SIGINT)]
#[case("HUP", Signal::SIGHUP, Signal::SIGTERM)]
#[case("QUIT", Signal::SIGQUIT, Signal::SIGHUP)]
#[tokio::test]
async fn an_ignored_signal_stays_ignored_and_the_others_end_the_command(
    #[case] name: &str,
    #[case] ignored: Signal,
    #[case] other: Signal,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let device = Loop::of(MIB);
    host.agent.set_on_attach(OnAttach::Hangs);
    let plug = host.command(&[(device.path(), "/dev/xvda")], &[]);
    let (child, pid) = start(&mut after(&format!("trap '' {name}"), &plug));
    host.agent.request_received.notified().await;
    assert!(ignores(pid, ignored) && !ignores(pid, other));
    kill(pid, ignored).unwrap();
    kill(pid, other).unwrap();
    let output = child.wait_with_output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(128 + other as i32), "{report}");
    let message = format!("interrupted by {}", other.as_str());
    assert_eq!(report["error"]["message"], message.as_str(), "{report}");
    assert_eq!(host.snapshot().await, clean);
}

#[tokio::test]
async fn a_repair_whose_signals_are_ignored_runs_to_its_end() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let (first, second) = (Loop::of(MIB), Loop::of(MIB));
    host.plug(first.path(), "/dev/xvda", &[]).await.report();
    host.plug(second.path(), "/dev/xvdb", &[]).await.report();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    host.agent.request_received.notified().await;
    *host.agent.detach_delay.lock().unwrap() = std::time::Duration::from_millis(200);
    let (child, pid) = start(&mut after("trap '' INT TERM HUP", &host.verb_command("repair", &[])));
    host.agent.request_received.notified().await;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        kill(pid, signal).unwrap();
    }
    let output = child.wait_with_output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!(report["result"], serde_json::json!(Outcome::Repaired), "{report}");
    assert_eq!(host.snapshot().await, clean);
}

/// A shell that keeps `count` descriptors open besides the standard streams.
fn open(count: usize) -> String {
    let last = 2 + count;
    format!(
        "exec bash -c 'for fd in $(seq 3 {last}); do eval \"exec $fd</dev/null\"; done; \
         exec \"$0\" \"$@\"' \"$0\" \"$@\""
    )
}

#[rstest]
#[case::six("ulimit -n 6".to_owned(), "6")]
#[case::one_too_few("ulimit -n 31".to_owned(), "31")]
#[case::hard_limit_alone("ulimit -Sn 4; ulimit -Hn 31".to_owned(), "31")]
#[case::all_in_use(format!("ulimit -n 40; {}", open(36)), "40")]
#[case::nearly_all_in_use(format!("ulimit -n 40; {}", open(30)), "40")]
#[tokio::test]
async fn too_few_descriptors_are_an_error_before_anything_is_opened(
    #[case] prelude: String,
    #[case] limit: &str,
) {
    let mut host = Host::boot().await;
    let (before, image, log) = (host.snapshot().await, Image::of(MIB), host.path("audit.log"));
    let to_log = ["--audit-log", log.to_str().unwrap()];
    for command in [
        host.command(&[(image.path(), "/dev/xvda")], &to_log),
        host.verb_command("list", &to_log),
        host.verb_command("repair", &to_log),
    ] {
        let ran = run(&mut after(&prelude, &command)).await;
        ran.assert_fails("descriptor_limit", 11);
        let error = ran.failure();
        assert!(error.message.contains("ulimit -n") && error.message.contains(limit), "{error:?}");
        assert!(error.remedy.unwrap().contains("ulimit"));
    }
    assert!(!log.exists());
    assert_eq!((host.snapshot().await, host.changes().len()), (before, 0));
    let mut check = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    check.arg("check");
    let (status, stderr) = run_to(&mut after(&prelude, &check), Stdio::null()).await;
    assert_eq!(status, Some(11), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains("\nremedy: "), "{stderr}");
}

#[rstest]
#[case::the_fewest("ulimit -n 32".to_owned())]
#[case::soft_limit("ulimit -Sn 4".to_owned())]
#[case::soft_limit_of_the_fewest("ulimit -Sn 4; ulimit -Hn 32".to_owned())]
#[case::many_in_use(format!("ulimit -Sn 64; ulimit -Hn 100; {}", open(60)))]
#[tokio::test]
async fn enough_descriptors_are_enough(#[case] prelude: String) {
    let mut host = Host::boot().await;
    let (device, image) = (Loop::of(MIB), Image::of(MIB));
    let clean = host.snapshot().await;
    let volumes = [(device.path(), "/dev/xvda"), (image.path(), "/dev/xvdb")];
    run(&mut after(&prelude, &host.command(&volumes, &[]))).await.report();
    let listing = run(&mut after(&prelude, &host.verb_command("list", &[]))).await.listing();
    assert_eq!(listing.body.volumes.len(), 2);
    for path in ["/dev/xvda", "/dev/xvdb"] {
        let unplug = host.verb_command("hot-unplug", &["--device-path", path]);
        run(&mut after(&prelude, &unplug)).await.report();
    }
    assert_eq!(host.snapshot().await, clean);
}

/// What opens nothing works with any limit.
#[rstest]
#[case(&["completions", "bash"], 0)]
#[case(&["--help"], 0)]
#[case(&["block-volume", "list", "--no-such-option"], 2)]
#[tokio::test]
async fn texts_need_no_descriptors(#[case] words: &[&str], #[case] status: i32) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.args(words);
    let (ended, stderr) = run_to(&mut after("ulimit -n 6", &command), Stdio::null()).await;
    assert_eq!(ended, Some(status), "{stderr}");
}

/// The steps of a plug run side by side, and which one finds no descriptor free depends on the
/// limit and on chance. The error does not.
#[tokio::test]
async fn whichever_step_finds_no_descriptor_the_error_is_the_same() {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let volumes: Vec<_> = (0..8).map(|n| (Image::of(MIB), format!("/dev/x{n}"))).collect();
    let pairs: Vec<_> = volumes.iter().map(|(image, path)| (image.path(), path.as_str())).collect();
    let mut failed = 0;
    for in_use in 0..26 {
        let prelude = format!("ulimit -n 34; {}", open(in_use));
        let ran = run(&mut after(&prelude, &host.command(&pairs, &[]))).await;
        if ran.exit_code == Some(0) {
            for (_, path) in &pairs {
                run(&mut host.verb_command("hot-unplug", &["--device-path", path])).await.report();
            }
        } else {
            ran.assert_fails("descriptor_limit", 11);
            failed += 1;
        }
        assert_eq!(host.snapshot().await, clean, "with {in_use} in use");
    }
    assert!(failed > 8, "{failed} failed");
}

/// Each volume needs descriptors for as long as the command works.
#[rstest]
#[case::too_few("ulimit -n 32", 40, false)]
#[case::recommended("ulimit -n 1024", 256, true)]
#[tokio::test]
async fn many_volumes_need_more(
    #[case] prelude: &str,
    #[case] count: usize,
    #[case] suffices: bool,
) {
    let mut host = Host::boot().await;
    let clean = host.snapshot().await;
    let volumes: Vec<_> = (0..count).map(|n| (Image::of(MIB), format!("/dev/x{n}"))).collect();
    let pairs: Vec<_> = volumes.iter().map(|(image, path)| (image.path(), path.as_str())).collect();
    let ran = run(&mut after(prelude, &host.command(&pairs, &[]))).await;
    if suffices {
        assert_eq!(ran.report().body.volumes.len(), count);
        return;
    }
    ran.assert_fails("descriptor_limit", 11);
    let error = ran.failure();
    assert!(error.message.contains("Too many open files"), "{error:?}");
    assert!(error.remedy.unwrap().contains("ulimit"));
    assert_eq!(host.snapshot().await, clean);
}
