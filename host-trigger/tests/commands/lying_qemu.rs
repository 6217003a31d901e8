//! A QEMU that a guest has taken over sends what it likes: the memory that its lines take is
//! bounded, and so is the time.

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use crate::common::scripted_qemu::{ScriptedQemu, reply};
use nix::sys::resource::{UsageWho, getrusage};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::process::Command;

const MIB: usize = 1 << 20;
/// What a command may take at most, in MiB.
const MOST: i64 = 200;

/// Runs `list` against a QEMU that sends something by `lie` when the list of descriptor sets is
/// asked for, and answers every command. Returns the error's reason, if there is one, and the time.
async fn list(
    timeout: &str,
    lie: impl Fn(&str, &mut UnixStream) + Send + 'static,
) -> (Option<String>, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let path = |part: &str| directory.path().join(part);
    for part in ["vm/s1", "sbs/s1"] {
        fs::create_dir_all(path(part)).unwrap();
    }
    let state = json!({"HypervisorState": {"Type": "qemu", "Pid": std::process::id()}});
    fs::write(path("sbs/s1/persist.json"), state.to_string()).unwrap();
    let _qemu = ScriptedQemu::listen(&path("vm/s1/qmp.sock"), move |name, id, stream| {
        if name == "query-fdsets" {
            lie(id, stream);
        }
        reply(stream, "[]", id);
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(directory.path()).args(["block-volume", "list", "--output"]);
    command.args(["json", "--sandbox", "s1", "--timeout", timeout]);
    command.args(["--agent", "unix:///nonexistent/agent.sock"]).kill_on_drop(true);
    let began = Instant::now();
    let output = command.output().await.unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let reason = document["error"]["reason"].as_str().map(str::to_owned);
    (reason, began.elapsed())
}

/// Sends `count` copies of `text`, as long as they are read.
fn repeat(stream: &mut UnixStream, text: &str, count: usize) -> std::io::Result<()> {
    let chunk = text.repeat((MIB / text.len()).clamp(1, count));
    for _ in 0..count * text.len() / chunk.len() {
        stream.write_all(chunk.as_bytes())?;
    }
    Ok(())
}

fn wrapped(stream: &mut UnixStream, [start, text, end]: [&str; 3], length: usize) {
    // The client may have gone.
    let _ = stream.write_all(start.as_bytes());
    let _ = repeat(stream, text, length / text.len());
    let _ = stream.write_all(end.as_bytes());
}

#[track_caller]
fn assert_memory_is_bounded() {
    let peak = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() / 1024;
    println!("peak: {peak} MiB");
    assert!(peak > 0 && peak < MOST, "{peak} MiB");
}

const EVENT: &str = r#"{"timestamp": {}, "event": "DEVICE_DELETED", "data": "#;

#[rstest]
#[case::empty_lists(["[", "[],", "0]}\n"])]
#[case::objects(["[", r#"{"":0},"#, "0]}\n"])]
#[case::text(["\"", "x", "\"}\n"])]
#[case::nested(["", "[", "\n"])]
#[tokio::test]
async fn two_events_of_forty_megabytes_take_no_memory(#[case] parts: [&'static str; 3]) {
    let [start, text, end] = parts;
    let (reason, _) = list("20s", move |_, stream| {
        for _ in 0..2 {
            wrapped(stream, [&[EVENT, start].concat(), text, end], 40 * MIB);
        }
    })
    .await;
    assert_eq!(reason, None, "the events are not noticed");
    assert_memory_is_bounded();
}

#[tokio::test]
async fn many_events_of_the_permitted_length_take_little_memory() {
    let (reason, _) = list("20s", |_, stream| {
        let more = r#"{"":0},"#.repeat(2857);
        let device = "d".repeat(1000);
        let event = format!("{EVENT}{{\"device\": \"{device}\", \"more\": [{more}0]}}}}\n");
        // In long pieces: on a busy machine each one that wakes the client may take milliseconds.
        let _ = repeat(stream, &event, 1200);
    })
    .await;
    assert_eq!(reason, None, "the events are not noticed");
    assert_memory_is_bounded();
}

#[rstest]
#[case::beyond_the_longest(["[", "[],", "0]"], 64 * MIB, "qmp_lost")]
#[case::objects(["[", r#"{"":0},"#, "0]"], 15 * MIB, "qemu_refused")]
#[case::sets(["[", r#"{"fdset-id":1,"fds":[]},"#, r#"{"fdset-id":1,"fds":[]}]"#], 15 * MIB, "qemu_refused")]
#[case::descriptors([r#"[{"fdset-id":1,"fds":["#, r#"{"fd":1},"#, r#"{"fd":1}]}]"#], 15 * MIB, "qemu_refused")]
#[case::text([r#"[{"fdset-id":1,"fds":[{"fd":1,"opaque":""#, "x", r#""}]}]"#], 15 * MIB, "")]
#[case::nested(["[", "[", ""], 15 * MIB, "qemu_refused")]
#[tokio::test]
async fn a_long_list_is_refused_or_takes_little_memory(
    #[case] parts: [&'static str; 3],
    #[case] length: usize,
    #[case] expected: &str,
) {
    let [start, text, end] = parts;
    let (reason, _) = list("20s", move |id, stream| {
        let (start, end) = (format!("{{\"return\": {start}"), format!("{end}, \"id\": {id}}}\n"));
        wrapped(stream, [&start, text, &end], length);
    })
    .await;
    assert_eq!(reason.unwrap_or_default(), expected);
    assert_memory_is_bounded();
}

#[tokio::test]
async fn an_endless_flood_of_events_does_not_delay_the_deadline() {
    let (reason, took) = list("2s", |_, stream| {
        let event = [EVENT, "{\"device\": \"d\"}}\n"].concat();
        let _ = repeat(stream, &event, usize::MAX / event.len());
    })
    .await;
    assert_eq!(reason.as_deref(), Some("timed_out"));
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_memory_is_bounded();
}

/// The state file is the runtime's, but may be damaged.
#[tokio::test]
async fn a_state_file_of_any_length_takes_little_memory() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("vm/s1")).unwrap();
    fs::create_dir_all(directory.path().join("sbs/s1")).unwrap();
    let mut file = fs::File::create(directory.path().join("sbs/s1/persist.json")).unwrap();
    file.write_all(b"{\"HypervisorState\": [").unwrap();
    for _ in 0..64 {
        file.write_all("{\"\":0},".repeat(MIB / 7).as_bytes()).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecr-runtime"));
    command.arg("--run-dir").arg(Path::new(directory.path()));
    command.args(["block-volume", "list", "--sandbox", "s1"]);
    assert_eq!(command.output().await.unwrap().status.code(), Some(14));
    assert_memory_is_bounded();
}
