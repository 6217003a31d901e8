//! Tests of a connection with faults.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixListener,
    path::Path,
};

use serde_json::json;

use super::*;
use crate::proxy::{QmpProxy, Rule, command, event, greeting, reply_to};

/// A fake QEMU: sends the greeting, answers every command with its line number, and sends an
/// event after each reply.
fn qemu(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            (&stream).write_all(b"{\"QMP\": {}}\r\n").unwrap();
            for (number, line) in BufReader::new(&stream).lines().map_while(Result::ok).enumerate()
            {
                let name =
                    serde_json::from_str::<serde_json::Value>(&line).unwrap()["execute"].clone();
                let answer = format!(
                    "{}\r\n{}\r\n",
                    json!({ "return": number }),
                    json!({ "event": "E", "of": name })
                );
                if (&stream).write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
}

/// Sends all `commands` after the greeting, and returns the lines that the client receives, up
/// to `lines`.
fn received(rules: impl IntoIterator<Item = Rule>, commands: &[&str], lines: usize) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qemu.sock");
    qemu(&path);
    let proxy = QmpProxy::start_with(&path, rules).unwrap();
    let client = UnixStream::connect(proxy.path()).unwrap();
    let mut incoming = BufReader::new(&client).lines().map_while(Result::ok).take(lines);
    let mut received: Vec<String> = incoming.next().into_iter().collect();
    for name in commands {
        (&client).write_all(format!("{}\n", json!({ "execute": name })).as_bytes()).unwrap();
    }
    received.extend(incoming);
    proxy.assert_all_met();
    received
}

const QMP: &str = r#"{"QMP": {}}"#;
const FIRST: &str = r#"{"return":0}"#;
const EVENT: &str = r#"{"event":"E","of":"a"}"#;

#[test]
fn each_fault_has_its_effect() {
    let on = |message, fault| [Rule::on(message, fault)];
    assert_eq!(received([], &["a"], 3), [QMP, FIRST, EVENT]);
    assert_eq!(received(on(reply_to("a"), Fault::Drop), &["a"], 2), [QMP, EVENT]);
    assert_eq!(received(on(event("E"), Fault::Twice), &["a"], 4), [QMP, FIRST, EVENT, EVENT]);
    assert_eq!(
        received(on(reply_to("a"), Fault::Behind(event("E"))), &["a"], 3),
        [QMP, EVENT, FIRST]
    );
    let late = Fault::Delay(Duration::from_millis(50));
    assert_eq!(received(on(reply_to("a"), late), &["a"], 3), [QMP, EVENT, FIRST]);
    let stalled = Fault::Stall(Duration::from_millis(50));
    assert_eq!(received(on(reply_to("a"), stalled), &["a"], 3), [QMP, FIRST, EVENT]);
    assert_eq!(received(on(greeting(), Fault::Split(1)), &["a"], 3), [QMP, FIRST, EVENT]);
    // The first command is dropped, so the only reply is to the second.
    assert_eq!(received(on(command("a"), Fault::Drop), &["a", "b"], 2), [QMP, FIRST]);
    assert_eq!(received(on(command("a"), Fault::Cut), &["a"], 9), [QMP]);
    assert_eq!(received(on(reply_to("a"), Fault::CutAfter(5)), &["a"], 9), [QMP, &FIRST[..5]]);
    let event = Fault::inject_event("X", &json!(1));
    let injected = r#"{"timestamp":{"seconds":1,"microseconds":2},"event":"X","data":1}"#;
    assert_eq!(received(on(command("a"), event), &["a"], 3), [QMP, injected, FIRST]);
    let other = Fault::edit_json(|command| command["execute"] = json!("z"));
    assert_eq!(received(on(command("a"), other), &["a"], 3)[2], r#"{"event":"E","of":"z"}"#);
}

#[test]
fn lines_and_descriptors_reach_the_other_side_and_are_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qemu.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let record = directory.path().join("record");
    let rules = [Rule::on(command("add-fd"), Fault::Split(3))];
    let proxy =
        QmpProxy::start_at(&directory.path().join("proxy"), &path, rules, Some(&record)).unwrap();
    let qemu = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut byte = [0];
        let (_, descriptors) = descriptors::receive(&stream, &mut byte).unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        (&stream).write_all(b"{\"return\": {}}\r\n").unwrap();
        let mut contents = String::new();
        let passed = descriptors.into_iter().next().unwrap();
        std::fs::File::from(passed).read_to_string(&mut contents).unwrap();
        (line, contents)
    });
    let passed = directory.path().join("passed");
    std::fs::write(&passed, "contents").unwrap();
    let client = UnixStream::connect(proxy.path()).unwrap();
    let file = OwnedFd::from(std::fs::File::open(&passed).unwrap());
    descriptors::send(&client, b"{\"execute\":\"add-fd\"}\n", &[file]).unwrap();
    let mut answer = String::new();
    BufReader::new(&client).read_line(&mut answer).unwrap();
    assert_eq!(answer, "{\"return\": {}}\r\n");
    assert_eq!(
        qemu.join().unwrap(),
        ("\"execute\":\"add-fd\"}\n".to_owned(), "contents".to_owned())
    );
    assert_eq!(proxy.commands(), ["add-fd"]);
    let recorded = std::fs::read_to_string(&record).unwrap();
    assert_eq!(recorded, proxy.json_lines());
    let lines = proxy.lines();
    assert_eq!((&lines[0]["from"], &lines[0]["fault"]), (&json!("client"), &json!("split:3")));
    assert_eq!((&lines[1]["from"], &lines[1]["fault"]), (&json!("server"), &json!(null)));
}

#[test]
fn a_descriptor_belongs_to_the_message_that_it_came_with() {
    let mut inflow = Inflow::default();
    let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    // The kernel may return what was sent before together with the message of the descriptor.
    inflow.add(b"first\nsecond\n", vec![null]);
    inflow.add(b"third\n", Vec::new());
    let counts = [6, 7, 6].map(|length| inflow.take(length).1.len());
    assert_eq!(counts, [0, 1, 0]);
}
