//! A whole QMP session with a QEMU that sends arbitrary text, over a real socket: nothing panics,
//! and the text output is fit for a terminal.
//!
//! Input: what QEMU sends, separated by NUL bytes: the greeting, then one message for each command.
//! `$id` stands for the ID of the command. A message without a reply ends the connection, so that
//! no client waits for one.

#![no_main]

use std::{path::Path, sync::LazyLock, time::Duration};

use block_volume_qmp::Qmp;
use host_trigger::{Deadline, fuzz};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixListener,
    runtime::{Builder, Runtime},
};

/// An abstract socket: it leaves no file.
static SOCKET: LazyLock<String> =
    LazyLock::new(|| format!("\0ecr-fuzz-qmp-{}", std::process::id()));
static RUNTIME: LazyLock<(Runtime, UnixListener)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("the runtime starts");
    let listener = runtime
        .block_on(async { UnixListener::bind(&*SOCKET) })
        .expect("the abstract socket is free");
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
    let text = fuzz::inspect(&mut qmp).await;
    qmp.close();
    text.ok()
}

async fn qemu(listener: &UnixListener, script: &str) {
    let (stream, _) = listener.accept().await.expect("the client connects");
    let mut stream = BufReader::new(stream);
    let mut messages = script.split('\0');
    let mut next_message = |id: &Value| {
        let message = messages.next()?.replace("$id", &id.to_string()) + "\n";
        let replies = message.lines().any(|line| is_reply(line, id));
        Some((message, replies))
    };
    let mut id = Value::Null;
    while let Some((message, replies)) = next_message(&id) {
        // The client may have disconnected already.
        if stream.get_mut().write_all(message.as_bytes()).await.is_err() || !replies {
            return;
        }
        let mut command = String::new();
        while command.trim().is_empty() {
            command.clear();
            if !stream.read_line(&mut command).await.is_ok_and(|read| read > 0) {
                return;
            }
        }
        let command: Value = serde_json::from_str(&command).expect("a command is JSON");
        id = command["id"].clone();
    }
}

/// Whether the client waits for this line: the greeting before the first command, later the reply
/// to the command `id`.
fn is_reply(line: &str, id: &Value) -> bool {
    let Ok(line) = serde_json::from_str::<Value>(line) else { return false };
    let replies = line.get("return").is_some() || line.get("error").is_some();
    match id {
        Value::Null => line.get("QMP").is_some() && !replies,
        id => replies && line["id"] == *id && line["event"].is_null(),
    }
}
