//! An audit log that takes no record: work is refused where it was named, and goes on where it is
//! the default. Every user can fill the queue of syslog.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixDatagram},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::common::{
    Host, RunOutput, records, run,
    shell::after,
    volume::{Image, Small},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rstest::rstest;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A socket that nobody reads, with room for `room` more records.
fn unread(path: &Path, room: usize) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"x", path).is_ok() {}
    for _ in 0..room {
        socket.recv(&mut [0]).unwrap();
    }
    socket
}

async fn plug(host: &Host, image: &Image, log: Option<&Path>) -> RunOutput {
    let log: Vec<_> = log.iter().flat_map(|log| ["--audit-log", log.to_str().unwrap()]).collect();
    host.plug(image.path(), "/dev/xvda", &log).await
}

/// Refused, and nothing has changed.
async fn assert_refused(host: &mut Host, ran: &RunOutput, why: &str) {
    ran.assert_fails("not_audited", 1);
    let error = ran.failure();
    assert!(error.message.contains(why) && error.remedy.is_some(), "{error:?}");
    assert!(host.changes().is_empty() && host.agent.attached_paths().is_empty());
}

/// Done, with the exit status of a lost record. The result stays what happened.
#[track_caller]
fn assert_lost(ran: &RunOutput, result: &str, why: &str) {
    assert_eq!(ran.exit_code, Some(16), "{ran:?}");
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&document["result"], &document["error"]), (&result.into(), &Value::Null));
    let lost = "error: the audit record of what was done could not be written: ";
    assert!(ran.stderr.contains(lost) && ran.stderr.contains(why), "{ran:?}");
    assert!(ran.stderr.contains("\nremedy: "), "{ran:?}");
}

#[tokio::test]
async fn work_is_refused_if_the_named_socket_takes_no_record() {
    let mut host = Host::boot().await;
    let (socket, image) = (host.path("log"), Image::of(MIB));
    let _unread = unread(&socket, 0);
    let ran = plug(&host, &image, Some(&socket)).await;
    assert_refused(&mut host, &ran, "its queue is full").await;
    assert!(ran.took >= Duration::from_secs(2), "{ran:?}");
    for verb in ["hot-unplug", "resize"] {
        let more = ["--device-path", "/dev/xvda", "--audit-log", socket.to_str().unwrap()];
        host.verb(verb, &more).await.assert_fails("not_audited", 1);
    }
    let more = ["--audit-log", socket.to_str().unwrap()];
    host.verb("repair", &more).await.assert_fails("not_audited", 1);
}

#[tokio::test]
async fn work_is_refused_if_the_named_file_has_no_room_for_a_record() {
    let mut host = Host::boot().await;
    let (small, image) = (Small::mount(host.path("small")), Image::of(MIB));
    let log = small.path().join("audit.log");
    let filler = vec![b'\n'; 8192 - 100];
    fs::write(&log, &filler).unwrap();
    let ran = plug(&host, &image, Some(&log)).await;
    assert_refused(&mut host, &ran, "No space left on device").await;
    assert!(fs::read(&log).unwrap() == filler, "the file has changed");
}

#[tokio::test]
async fn an_end_that_the_named_socket_does_not_take_is_an_exit_status() {
    let mut host = Host::boot().await;
    let (socket, image) = (host.path("log"), Image::of(MIB));
    let _unread = unread(&socket, 1);
    let ran = plug(&host, &image, Some(&socket)).await;
    assert_lost(&ran, "attached", "its queue is full");
    assert_eq!(records(&host.snapshot().await).len(), 2);
}

/// Work that failed keeps its exit status.
#[tokio::test]
async fn a_failure_whose_end_is_lost_keeps_its_exit_status() {
    let host = Host::boot().await;
    let socket = host.path("log");
    let _unread = unread(&socket, 1);
    let more = ["--audit-log", socket.to_str().unwrap()];
    let ran = host.plug(Path::new("/dev/null"), "/dev/xvda", &more).await;
    ran.assert_fails("source_kind", 6);
    assert!(ran.stderr.contains("its queue is full"), "{ran:?}");
}

/// The limit of the file's size lets the beginning pass, and not the end. The shell's unit is 512
/// bytes.
#[tokio::test]
async fn an_end_that_the_named_file_does_not_take_is_an_exit_status() {
    let mut host = Host::boot().await;
    let (log, image) = (host.path("audit.log"), Image::of(MIB));
    plug(&host, &image, Some(&log)).await.report();
    let text = fs::read_to_string(&log).unwrap();
    let beginning = text.lines().next().unwrap().len();
    let unplug = ["--device-path", "/dev/xvda", "--audit-log", log.to_str().unwrap()];
    host.verb("hot-unplug", &unplug).await.report();
    // The next beginning is about as long.
    fs::write(&log, vec![b'\n'; 4096 - beginning - 50]).unwrap();
    let plug =
        host.command(&[(image.path(), "/dev/xvda")], &["--audit-log", log.to_str().unwrap()]);
    let ran = run(&mut after("ulimit -f 8", &plug)).await;
    assert_lost(&ran, "attached", "File too large");
    let text = fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(last["phase"], "begin");
    assert_eq!(records(&host.snapshot().await).len(), 2);
}

/// A `/dev` of the test's own, in a mount namespace of its own, with `/dev/kmsg` as an empty file
/// if that is wanted.
fn private_dev(host: &Host, kernel_log: bool) -> PathBuf {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    let plain = |source: Option<&Path>, target: &Path, kind: Option<&str>, flags| {
        mount(source, target, kind, flags, none).unwrap();
    };
    plain(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    let new = host.path("dev");
    fs::create_dir(&new).unwrap();
    plain(None, &new, Some("tmpfs"), MsFlags::empty());
    for name in ["null", "zero", "urandom"] {
        fs::write(new.join(name), "").unwrap();
        plain(Some(&Path::new("/dev").join(name)), &new.join(name), None, MsFlags::MS_BIND);
    }
    symlink("/proc/self/fd", new.join("fd")).unwrap();
    if kernel_log {
        fs::write(new.join("kmsg"), "").unwrap();
    }
    plain(Some(&new), Path::new("/dev"), None, MsFlags::MS_MOVE);
    PathBuf::from("/dev/kmsg")
}

#[tokio::test]
async fn a_full_queue_of_the_default_syslog_is_no_veto() {
    let mut host = Host::boot().await;
    let kernel_log = private_dev(&host, true);
    let _unread = unread(Path::new("/dev/log"), 0);
    let image = Image::of(MIB);
    let ran = plug(&host, &image, None).await;
    ran.report();
    assert!(ran.took >= Duration::from_secs(2), "{ran:?}");
    let warning = "warning: /dev/log does not take the audit record (its queue is full): it is in /dev/kmsg\n";
    assert_eq!(ran.stderr.matches(warning).count(), 1, "{ran:?}");
    assert_eq!(records(&host.snapshot().await).len(), 2);

    let text = fs::read_to_string(&kernel_log).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    for (line, phase) in lines.iter().zip(["begin", "end"]) {
        assert!(line.len() <= 900 && line.starts_with("<85>ecr-runtime["), "{line}");
        let (_, record) = line.split_once("]: ").unwrap();
        let record: Value = serde_json::from_str(record).unwrap();
        assert_eq!((&record["phase"], &record["command"]), (&phase.into(), &"hot-plug".into()));
    }
}

#[tokio::test]
async fn an_end_that_no_log_takes_is_an_exit_status() {
    let mut host = Host::boot().await;
    private_dev(&host, false);
    let _unread = unread(Path::new("/dev/log"), 0);
    let image = Image::of(MIB);
    let ran = plug(&host, &image, None).await;
    assert_lost(&ran, "attached", "/dev/kmsg: No such file or directory");
    assert!(ran.stderr.contains("warning: the audit record could not be written: "), "{ran:?}");
    assert_eq!(records(&host.snapshot().await).len(), 2);
}

#[rstest]
#[case::none(false)]
#[case::nobody_listens(true)]
#[tokio::test]
async fn without_syslog_a_change_says_that_it_is_not_audited(#[case] bound: bool) {
    let mut host = Host::boot().await;
    private_dev(&host, true);
    if bound {
        drop(UnixDatagram::bind("/dev/log").unwrap());
    }
    let image = Image::of(MIB);
    let ran = plug(&host, &image, None).await;
    ran.report();
    let said = ran.stderr.lines().filter(|line| line.contains("this command is not audited"));
    assert_eq!(said.count(), 1, "{ran:?}");
    assert_eq!(records(&host.snapshot().await).len(), 2);
    // A query and a dry run change nothing.
    for more in [&["--dry-run"][..], &["--dry-run", "--verbose"]] {
        let ran = host.plug(image.path(), "/dev/xvda", more).await;
        assert!(!ran.stderr.contains("not audited"), "{ran:?}");
    }
    assert!(!host.verb("list", &[]).await.stderr.contains("not audited"));
}

/// A query has a record, too, and is not refused: it has an end only.
#[tokio::test]
async fn a_query_whose_record_is_lost_is_an_exit_status() {
    let host = Host::boot().await;
    let socket = host.path("log");
    let _unread = unread(&socket, 0);
    let ran = host.verb("list", &["--audit-log", socket.to_str().unwrap()]).await;
    assert_lost(&ran, "listed", "its queue is full");
}
