//! A scripted peer in place of QEMU, for what QEMU does only rarely.

#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part of it")]

use std::path::Path;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, \"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n";

/// Starts a peer at `path` that greets, accepts the capabilities, and then follows `script`.
pub(crate) async fn start<F: Future<Output = ()> + Send + 'static>(
    path: &Path,
    script: impl FnOnce(ScriptedPeer) -> F + Send + 'static,
) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut peer = ScriptedPeer(BufReader::new(stream));
        // As a real QEMU may do, send a reply to a client that has gone first.
        peer.send("{\"return\": [], \"id\": \"gone\"}\r\n").await;
        peer.send(GREETING).await;
        let command = peer.command().await;
        assert_eq!(command["execute"], "qmp_capabilities");
        peer.reply(&command, json!({})).await;
        script(peer).await;
        std::future::pending::<()>().await;
    });
}

/// As [`start`], on a thread of its own: `script` need not be `Send`, and the client and the peer
/// do not share a thread.
pub(crate) fn start_local<F: Future<Output = ()>>(
    path: &Path,
    script: impl FnOnce(ScriptedPeer) -> F + Send + 'static,
) {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            let mut peer = ScriptedPeer(BufReader::new(UnixStream::from_std(stream).unwrap()));
            peer.send(GREETING).await;
            let command = peer.command().await;
            peer.reply(&command, json!({})).await;
            script(peer).await;
        });
    });
}

/// The peer's end of the connection.
pub(crate) struct ScriptedPeer(pub(crate) BufReader<UnixStream>);

impl ScriptedPeer {
    /// Reads the next command.
    pub(crate) async fn command(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    pub(crate) async fn reply(&mut self, command: &Value, value: Value) {
        self.send(&format!("{}\r\n", json!({"return": value, "id": command["id"]}))).await;
    }
}
