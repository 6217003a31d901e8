//! The audit log as a file that is not healthy: torn lines, a full file system, limits, and things
//! that are no files.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::{
        fs::{FileTypeExt, symlink},
        net::UnixListener,
    },
    path::Path,
    process::Stdio,
    time::Duration,
};

use crate::common::{
    Host, RunOutput, run,
    shell::{after, run_to},
    volume::{Image, Small},
};
use nix::{sys::stat::Mode, unistd::mkfifo};
use rstest::rstest;
use serde_json::Value;
use tokio::process::Command;

const MIB: u64 = 1 << 20;

fn list(host: &Host, log: &Path) -> Command {
    host.verb_command("list", &["--audit-log", log.to_str().unwrap()])
}

/// The lines of the file, which are JSON but for those that `torn` names.
#[track_caller]
fn assert_lines(log: &Path, torn: &[&str], whole: usize) {
    let text = fs::read_to_string(log).unwrap();
    assert!(text.ends_with('\n'), "{text}");
    let (good, bad): (Vec<_>, Vec<_>) =
        text.lines().partition(|line| serde_json::from_str::<Value>(line).is_ok());
    assert_eq!((bad.as_slice(), good.len()), (torn, whole), "{text}");
}

#[rstest]
#[case::torn("{\"command\":\"li", &["{\"command\":\"li"])]
#[case::torn_before_its_newline("{\"command\":\"list\"}", &[])]
#[case::whole("{\"command\":\"list\"}\n", &[])]
#[case::empty("", &[])]
#[tokio::test]
async fn a_record_begins_on_a_line_of_its_own(#[case] before: &str, #[case] torn: &[&str]) {
    let host = Host::boot().await;
    let log = host.path("audit.log");
    fs::write(&log, before).unwrap();
    list(&host, &log).output().await.unwrap();
    list(&host, &log).output().await.unwrap();
    let old = usize::from(!before.is_empty() && torn.is_empty());
    assert_lines(&log, torn, old + 2);
    assert!(fs::read_to_string(&log).unwrap().starts_with(before));
}

/// The listing is printed, and the exit status says that its record is lost.
#[track_caller]
fn assert_lost(ran: &RunOutput, why: &str) {
    assert_eq!(ran.exit_code, Some(16), "{ran:?}");
    let lost = "error: the audit record of what was done could not be written: ";
    assert!(ran.stderr.contains(&format!("{lost}{why}")), "{ran:?}");
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&document["result"], &document["error"]), (&"listed".into(), &Value::Null));
}

/// The record is longer than what is free, and part of it fits.
#[tokio::test]
async fn a_record_that_does_not_fit_leaves_no_part_of_it() {
    let host = Host::boot().await;
    let small = Small::mount(host.path("small"));
    let log = small.path().join("audit.log");
    let mut filler = "{\"filler\":0}".to_owned();
    filler.push_str(&" ".repeat(8192 - 100 - filler.len() - 1));
    filler.push('\n');
    fs::write(&log, &filler).unwrap();
    assert_lost(&run(&mut list(&host, &log)).await, "No space left on device");
    assert!(fs::read_to_string(&log).unwrap() == filler, "the file has changed");
    // With a torn line before it, the newline that was to end the torn line goes as well.
    let torn = &filler[..filler.len() - 1];
    fs::write(&log, torn).unwrap();
    assert_lost(&run(&mut list(&host, &log)).await, "No space left on device");
    assert!(fs::read_to_string(&log).unwrap() == torn, "the file has changed");
    // There is room again.
    fs::write(&log, "{}\n{\"torn").unwrap();
    run(&mut list(&host, &log)).await.listing();
    assert_lines(&log, &["{\"torn"], 2);
}

/// The shell's unit is 512 bytes.
#[tokio::test]
async fn a_record_beyond_the_limit_of_the_file_size_leaves_no_part_of_it() {
    let mut host = Host::boot().await;
    let log = host.path("audit.log");
    let mut filler = vec![b' '; 999];
    filler.push(b'\n');
    fs::write(&log, &filler).unwrap();
    let ran = run(&mut after("ulimit -f 2", &list(&host, &log))).await;
    assert_lost(&ran, "File too large");
    assert!(fs::read(&log).unwrap() == filler, "the file has changed");
    // What may change something is refused.
    let image = Image::of(MIB);
    let more = ["--audit-log", log.to_str().unwrap()];
    let plug = host.command(&[(image.path(), "/dev/xvda")], &more);
    let ran = run(&mut after("ulimit -f 2", &plug)).await;
    ran.assert_fails("not_audited", 1);
    assert!(ran.stdout.contains("File too large"), "{ran:?}");
    assert!(fs::read(&log).unwrap() == filler, "the file has changed");
    assert!(crate::common::records(&host.snapshot().await).is_empty() && host.changes().is_empty());
}

/// Each ends the torn line or finds it ended.
#[tokio::test]
async fn records_of_runs_at_the_same_time_do_not_mix() {
    let host = Host::boot().await;
    let log = host.path("audit.log");
    fs::write(&log, "{\"torn").unwrap();
    let mut commands: Vec<_> = (0..8)
        .map(|_| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
            command.args([
                "block-volume",
                "list",
                "--sandbox",
                "none",
                "--run-dir",
                "/nonexistent",
            ]);
            command.arg("--audit-log").arg(&log).stderr(Stdio::null());
            command
        })
        .collect();
    let children: Vec<_> = commands.iter_mut().map(|command| command.spawn().unwrap()).collect();
    for mut child in children {
        assert_eq!(child.wait().await.unwrap().code(), Some(3));
    }
    assert_lines(&log, &["{\"torn"], 8);
}

#[rstest]
#[case::fifo("fifo", "a FIFO")]
#[case::link_to_a_fifo("link", "a FIFO")]
#[case::directory("sbs", "a directory")]
#[case::character_device("/dev/null", "a character device")]
#[case::terminal("/dev/ptmx", "a character device")]
#[tokio::test]
async fn what_is_no_file_is_refused_before_anything_is_done(
    #[case] name: &str,
    #[case] kind: &str,
) {
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    mkfifo(&host.path("fifo"), Mode::S_IRWXU).unwrap();
    symlink(host.path("fifo"), host.path("link")).unwrap();
    let (log, image) = (host.path(name), Image::of(MIB));
    let more = ["--audit-log", log.to_str().unwrap()];
    let ran = host.plug(image.path(), "/dev/xvda", &more).await;
    ran.assert_fails("audit_log", 2);
    let error = ran.failure();
    assert_eq!(
        error.message,
        format!("the audit log {log:?} is {kind}, neither a regular file nor a socket")
    );
    assert!(error.remedy.unwrap().contains("--audit-log"));
    assert!(ran.took < Duration::from_secs(20), "{ran:?}");
    assert_eq!(host.snapshot().await, before);
    assert!(host.changes().is_empty());
    // For people as well, and for every command.
    let mut check = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    let (status, stderr) = run_to(check.arg("check").args(more), Stdio::null()).await;
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("error: the audit log ") && stderr.contains("\nremedy: "), "{stderr}");
}

#[tokio::test]
async fn a_block_device_is_refused_and_not_written() {
    let host = Host::boot().await;
    let device = crate::common::volume::Loop::of(MIB);
    assert!(fs::metadata(device.path()).unwrap().file_type().is_block_device());
    run(&mut list(&host, device.path())).await.assert_fails("audit_log", 2);
    assert!(fs::read(device.image()).unwrap().iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_socket_of_another_type_is_an_error() {
    let host = Host::boot().await;
    let socket = host.path("stream");
    let _listener = UnixListener::bind(&socket).unwrap();
    run(&mut list(&host, &socket)).await.assert_fails("system", 1);
}

#[tokio::test]
async fn a_link_to_a_file_and_a_new_file_are_accepted() {
    let host = Host::boot().await;
    let (log, link) = (host.path("audit.log"), host.path("link"));
    symlink(&log, &link).unwrap();
    run(&mut list(&host, &link)).await.listing();
    run(&mut list(&host, &log)).await.listing();
    assert_lines(&log, &[], 2);
    let mut file = OpenOptions::new().append(true).open(&log).unwrap();
    file.write_all(b"{\"torn").unwrap();
    run(&mut list(&host, &link)).await.listing();
    assert_lines(&log, &["{\"torn"], 3);
}
