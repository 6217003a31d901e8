//! What a Kata shim reports of its sandbox: `GET /agent-url` on its monitor socket, and the file
//! `persist.json` of the Go runtime ([Kata's
//! design](https://github.com/kata-containers/kata-containers/blob/main/docs/design/architecture/README.md)).
//! The shim rewrites that file in place without a lock, so an incomplete file may be read. It is
//! never written here.

use std::{fs::File, io::Read, path::Path, time::Duration};

use block_volume_qmp::unix_socket;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;

use super::agent_address::AgentAddress;
use crate::Deadline;

/// The maximum time that the shim may take.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum length of a response: addresses and error pages are shorter.
const MAX_BODY: usize = 16 << 10;
/// The maximum length of `persist.json`; Kata's has some ten kilobytes.
const MAX_STATE: u64 = 8 << 20;

/// The parts of `persist.json` that are used.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The agent's address.
    pub agent: Option<AgentAddress>,
    /// `qemu`, `clh`, …
    pub hypervisor: Option<String>,
    /// The hypervisor's process ID.
    pub pid: Option<i32>,
}

/// Asks the shim that listens on `socket` for its agent's address.
///
/// # Errors
/// Says what went wrong, as a part of a sentence: the caller has a second source.
pub async fn agent_url(socket: &Path, deadline: Deadline) -> Result<AgentAddress, String> {
    match deadline.capped(TIMEOUT).wait(get(socket, "/agent-url")).await {
        Ok(Ok(body)) => {
            let text = String::from_utf8_lossy(&body);
            text.trim().parse().map_err(|_| {
                format!("{} did not reply to /agent-url with an address", socket.display())
            })
        }
        Ok(Err(why)) => Err(why),
        Err(_) => Err(format!("{} did not reply to /agent-url", socket.display())),
    }
}

async fn get(socket: &Path, path: &str) -> Result<Bytes, String> {
    let failed = |what: &dyn std::fmt::Display| format!("{}: {what}", socket.display());
    let stream = unix_socket::connect(socket).await.map_err(|e| failed(&e))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|e| failed(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        if response.status() != StatusCode::OK {
            return Err(failed(&response.status()));
        }
        let body =
            Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|e| failed(&e))?;
        Ok(body.to_bytes())
    };
    // The connection is driven together with the exchange, and dropped with it.
    tokio::pin!(exchange, connection);
    tokio::select! {
        done = &mut exchange => done,
        ended = connection => match ended {
            // The peer closed after its response, which has been read.
            Ok(()) => exchange.await,
            Err(e) => Err(failed(&e)),
        },
    }
}

/// Reads `persist.json` as far as it can be parsed.
pub fn state(file: &Path) -> State {
    let mut text = Vec::new();
    match File::open(file).and_then(|file| file.take(MAX_STATE).read_to_end(&mut text)) {
        Ok(_) => State::parse(&text),
        Err(_) => State::default(),
    }
}

impl State {
    /// Parses the contents of the file; an incomplete file yields nothing.
    pub(crate) fn parse(text: &[u8]) -> Self {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Persist {
            agent_state: Option<AgentState>,
            hypervisor_state: Option<HypervisorState>,
        }
        #[derive(Deserialize)]
        struct AgentState {
            #[serde(rename = "URL")]
            url: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct HypervisorState {
            r#type: Option<String>,
            pid: Option<i32>,
        }

        let Ok(persist) = serde_json::from_slice::<Persist>(text) else { return Self::default() };
        let pid = persist.hypervisor_state.as_ref().and_then(|hypervisor| hypervisor.pid);
        Self {
            pid: pid.filter(|&pid| pid > 0),
            agent: persist.agent_state.and_then(|agent| agent.url?.parse().ok()),
            hypervisor: persist
                .hypervisor_state
                .and_then(|hypervisor| hypervisor.r#type)
                .filter(|kind| !kind.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn agent_url_of(answer: &'static str, hold: bool) -> Result<AgentAddress, String> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("shim-monitor.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /agent-url HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
            if hold {
                std::future::pending::<()>().await;
            }
        });
        agent_url(&socket, Deadline::after(Duration::from_millis(500))).await
    }

    #[rstest]
    #[case("HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\nvsock://3:1024", true)]
    #[case("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\nvsock://3:1024\n", false)]
    #[case("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nvsock://3:1024", false)]
    #[case(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ne\r\nvsock://3:1024\r\n0\r\n\r\n",
        true
    )]
    #[tokio::test]
    async fn the_address_is_read(#[case] answer: &'static str, #[case] hold: bool) {
        assert_eq!(
            agent_url_of(answer, hold).await.unwrap(),
            AgentAddress::Vsock { cid: 3, port: 1024 }
        );
    }

    #[rstest]
    #[case("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", true)]
    #[case("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd", true)]
    #[case("HTTP/1.1 200 OK\r\ncontent-length: 40000000\r\n\r\n", true)]
    #[case("nonsense\r\n\r\n", true)]
    #[case("", true)]
    #[case("", false)]
    #[tokio::test]
    async fn anything_else_is_an_error_in_time(#[case] answer: &'static str, #[case] hold: bool) {
        assert!(agent_url_of(answer, hold).await.is_err());
    }

    #[rstest]
    #[case(
        r#"{"HypervisorState":{"Type":"clh","Pid":3},"AgentState":{"URL":"vsock://3:1024"}}"#,
        Some("clh"),
        true
    )]
    #[case(r#"{"HypervisorState":{}}"#, None, false)]
    #[case(r#"{"HypervisorState":{"Type":"q"#, None, false)]
    fn the_state_file_is_read_as_far_as_it_can_be_parsed(
        #[case] text: &str,
        #[case] hypervisor: Option<&str>,
        #[case] agent: bool,
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let state = state(file.path());
        assert_eq!((state.hypervisor.as_deref(), state.agent.is_some()), (hypervisor, agent));
    }
}
