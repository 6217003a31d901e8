//! A scripted peer in the place of QEMU, for what QEMU does only by bad luck.

use std::path::Path;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

const GREETING: &str = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, \"package\": \"\"}, \"capabilities\": [\"oob\"]}}\r\n";

/// A peer that greets, accepts the capabilities, and then follows `script`.
pub async fn scripted<F: Future<Output = ()> + Send + 'static>(
    path: &Path,
    script: impl FnOnce(Peer) -> F + Send + 'static,
) {
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut peer = Peer(BufReader::new(stream));
        // An answer to somebody who has gone comes first, as from a real one.
        peer.send("{\"return\": [], \"id\": \"gone\"}\r\n").await;
        peer.send(GREETING).await;
        let command = peer.command().await;
        assert_eq!(command["execute"], "qmp_capabilities");
        peer.answer(&command, json!({})).await;
        script(peer).await;
        std::future::pending::<()>().await;
    });
}

pub struct Peer(pub BufReader<UnixStream>);

impl Peer {
    pub async fn command(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    pub async fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    pub async fn answer(&mut self, command: &Value, answer: Value) {
        self.send(&format!("{}\r\n", json!({"return": answer, "id": command["id"]}))).await;
    }
}
