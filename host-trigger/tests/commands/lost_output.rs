//! A standard output that cannot be written is an error: exit status 1 and a line on standard
//! error. If the work failed, its own exit status stays. Only a reader that has closed its end, or
//! a closed standard output, is no error.

use std::{fs::File, io::Read, process::Stdio};

use crate::common::{
    Host,
    shell::{after, run_to},
    volume::Image,
};
use block_volume_api::block_volume::Reason;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rstest::rstest;
use tokio::process::Command;

const MIB: u64 = 1 << 20;
const LOST: &str = "error: the result could not be written to standard output: ";
const FULL: &str = "No space left on device (os error 28)";

/// The device to which nothing can be written.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.args(words);
    command
}

/// Returns `ecr-runtime block-volume WORDS` for the sandbox, with this output format.
fn verb(host: &Host, format: &str, words: &[&str]) -> Command {
    let mut command = program(&["--run-dir", host.path("").to_str().unwrap(), "block-volume"]);
    command.args(words).args(["--sandbox", "s1"]);
    if !words.contains(&"--prometheus") {
        command.args(["--output", format]);
    }
    command
}

#[rstest]
#[case::text("human")]
#[case::json("json")]
#[tokio::test]
async fn every_verb_reports_a_full_standard_output(#[case] format: &str) {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let path = ["--device-path", "/dev/xvda"];
    let plug = [
        &["hot-plug", "--container", "c1", "--block-volume", image.path().to_str().unwrap()][..],
        &path,
    ]
    .concat();
    for words in [
        plug.clone(),
        plug,
        vec!["list"],
        [&["inspect"][..], &path].concat(),
        [&["throttle", "--iops", "500"][..], &path].concat(),
        [&["resize", "--size", "2MiB"][..], &path].concat(),
        vec!["stats"],
        vec!["stats", "--prometheus"],
        vec!["repair", "--dry-run"],
        vec!["repair"],
        [&["hot-unplug"][..], &path].concat(),
    ] {
        let mut command = verb(&host, format, &words);
        command.arg("--audit-log").arg(host.path("audit.log"));
        let (status, stderr) = run_to(&mut command, full()).await;
        assert_eq!(status, Some(1), "{words:?}: {stderr}");
        let lost = format!("{LOST}{FULL}\nremedy: ");
        assert!(stderr.starts_with(&lost), "{words:?}: {stderr}");
        let present = host.verb("list", &[]).await.listing().body.volumes;
        assert_eq!(present.is_empty(), words[0] == "hot-unplug", "{words:?} has done its work");
    }
}

#[rstest]
#[case::completions(&["completions", "bash"])]
#[case::help(&["--help"])]
#[case::help_of_a_verb(&["block-volume", "list", "--help"])]
#[case::version(&["--version"])]
#[tokio::test]
async fn text_that_needs_no_sandbox_is_an_error_on_a_full_standard_output(#[case] words: &[&str]) {
    let (status, stderr) = run_to(&mut program(words), full()).await;
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.starts_with(&format!("{LOST}{FULL}\n")), "{stderr}");
    assert_eq!(run_to(&mut program(words), Stdio::null()).await, (Some(0), String::new()));
}

#[rstest]
#[tokio::test]
async fn check_reports_a_full_standard_output(#[values("human", "json")] format: &str) {
    let host = Host::boot().await;
    let run_dir = host.path("");
    let words = ["--run-dir", run_dir.to_str().unwrap(), "check", "--sandbox", "s1", "--output"];
    let check = || program(&[&words[..], &[format]].concat());
    let (well, _) = run_to(&mut check(), Stdio::null()).await;
    let (status, stderr) = run_to(&mut check(), full()).await;
    assert_eq!(status, well.map(|status| if status == 0 { 1 } else { status }), "{stderr}");
    assert!(stderr.starts_with(&format!("{LOST}{FULL}\n")), "{stderr}");
}

#[tokio::test]
async fn work_that_failed_keeps_its_exit_status_and_its_error_is_seen() {
    let host = Host::boot().await;
    let plug = ["hot-plug", "--container", "c1", "--block-volume", "/dev/null", "--device-path"];
    let plug = [&plug[..], &["/dev/xvda"]].concat();
    let (status, stderr) = run_to(&mut verb(&host, "json", &plug), full()).await;
    assert_eq!(status, Some(6), "{stderr}");
    assert!(stderr.contains("error: \"/dev/null\" is a character device"), "{stderr}");
    assert!(stderr.contains(&format!("{LOST}{FULL}\n")), "{stderr}");
    // Its text is on standard error, and nothing is lost.
    let (status, stderr) = run_to(&mut verb(&host, "human", &plug), full()).await;
    assert_eq!(status, Some(6), "{stderr}");
    assert!(!stderr.contains(LOST), "{stderr}");
    let usage = &mut verb(&host, "json", &["list", "--no-such-option"]);
    let (status, stderr) = run_to(usage, full()).await;
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("--no-such-option") && stderr.contains(LOST), "{stderr}");
}

#[rstest]
#[tokio::test]
async fn a_repair_that_leaves_something_keeps_its_exit_status(
    #[values("human", "json")] format: &str,
) {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    host.agent.gone_containers.lock().unwrap().push("c1".into());
    *host.agent.detach_failure.lock().unwrap() = Some((Reason::REASON_SYSTEM, true));
    let (status, stderr) = run_to(&mut verb(&host, format, &["repair"]), full()).await;
    assert_eq!(status, Some(8), "{stderr}");
    assert!(stderr.contains("error: not everything could be repaired"), "{stderr}");
    assert!(stderr.contains(&format!("{LOST}{FULL}\n")), "{stderr}");
}

#[rstest]
#[case::closed("exec >&-", 0, "")]
#[case::read_only("exec 1</dev/null", 1, "Bad file descriptor")]
#[case::file_size("ulimit -f 0; exec >\"$OUTPUT\"", 1, "File too large")]
#[tokio::test]
async fn what_a_caller_makes_of_standard_output(
    #[case] prelude: &str,
    #[case] status: i32,
    #[case] error: &str,
) {
    let host = Host::boot().await;
    for command in [verb(&host, "json", &["list"]), program(&["completions", "bash"])] {
        let mut command = after(prelude, &command);
        command.env("OUTPUT", host.path("output"));
        let (ended, stderr) = run_to(&mut command, Stdio::null()).await;
        assert_eq!(ended, Some(status), "{stderr}");
        let lost = format!("{LOST}{error}");
        assert!(
            if status == 0 { stderr.is_empty() } else { stderr.starts_with(&lost) },
            "{stderr}"
        );
    }
}

#[tokio::test]
async fn a_reader_that_closes_its_end_has_what_it_wanted() {
    let host = Host::boot().await;
    for mut command in [
        verb(&host, "json", &["list"]),
        verb(&host, "human", &["list"]),
        program(&["completions", "bash"]),
        program(&["--help"]),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(run_to(&mut command, writer).await, (Some(0), String::new()), "{command:?}");
    }
}

/// A pipe that other programs have set to be non-blocking, as some terminals and supervisors do.
#[tokio::test]
async fn a_slow_reader_of_a_non_blocking_pipe_gets_everything() {
    let expected = program(&["completions", "bash"]).output().await.unwrap().stdout;
    let (mut reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = program(&["completions", "bash"]);
    let read = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        text
    });
    let child = command.stdout(writer).spawn().unwrap();
    // It has the writing end.
    drop(command);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(read.await.unwrap() == expected && expected.len() > 4096);
}
