//! A whole conversation with a QEMU that says anything, over a real socket and through qapi:
//! nothing of it panics, and what is made of it for people is fit for a terminal.
//!
//! Input: what QEMU says, first its greeting, then one turn for each command, with NUL bytes in
//! between. `$id` stands for the command's number. A turn that does not answer ends the connection,
//! so that nobody waits.

#![no_main]

use std::{path::Path, sync::LazyLock, time::Duration};

use block_volume_qmp::Qmp;
use host_trigger::{Deadline, fuzz, };
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixListener,
    runtime::{Builder, Runtime},
};

/// Without a name in the file system: nothing is left.
static SOCKET: LazyLock<String> =
    LazyLock::new(|| format!("\0ecr-fuzz-qmp-{}", std::process::id()));
static RUNTIME: LazyLock<(Runtime, UnixListener)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listener =
        runtime.block_on(async { UnixListener::bind(&*SOCKET) }).expect("an abstract socket");
    (runtime, listener)
});

fuzz_target!(|input: &[u8]| {
    let Ok(script) = str::from_utf8(input) else { return };
    let (runtime, listener) = &*RUNTIME;
    let text = runtime.block_on(async { tokio::join!(qemu(listener, script), client()) }).1;
    let bad = text.iter().flat_map(|text| text.chars()).find(|&c| c != '\n' && c.is_control());
    assert_eq!(bad, None, "{text:?}");
});

async fn client() -> Option<String> {
    let deadline = Deadline::after(Duration::from_secs(1));
    let mut qmp = Qmp::connect(Path::new(&*SOCKET), deadline).await.ok()?;
    let surveyed = fuzz::survey(&mut qmp).await;
    qmp.close();
    surveyed.ok()
}

async fn qemu(listener: &UnixListener, script: &str) {
    let (stream, _) = listener.accept().await.expect("a client");
    let mut stream = BufReader::new(stream);
    let mut turns = script.split('\0');
    let mut answers = |number: &Value| {
        let turn = turns.next()?.replace("$id", &number.to_string()) + "\n";
        let answered = turn.lines().any(|line| is_answer(line, number));
        Some((turn, answered))
    };
    let mut number = Value::Null;
    while let Some((turn, answered)) = answers(&number) {
        // A client that has gone already is fine.
        if stream.get_mut().write_all(turn.as_bytes()).await.is_err() || !answered {
            return;
        }
        let mut command = String::new();
        while command.trim().is_empty() {
            command.clear();
            if !stream.read_line(&mut command).await.is_ok_and(|read| read > 0) {
                return;
            }
        }
        let command: Value = serde_json::from_str(&command).expect("what is sent is JSON");
        number = command["id"].clone();
    }
}

/// Is the line what the client waits for: a greeting while there is no command, else an answer to
/// that?
fn is_answer(line: &str, number: &Value) -> bool {
    let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
    let answers = line.get("return").is_some() || line.get("error").is_some();
    match number {
        Value::Null => line.get("QMP").is_some() && !answers,
        number => answers && line["id"] == *number && line["event"].is_null(),
    }
}
