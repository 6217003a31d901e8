//! What a Kata shim reports of its sandbox: `GET /agent-url` on its monitor socket, and the file
//! `persist.json` of the Go runtime ([Kata's
//! design](https://github.com/kata-containers/kata-containers/blob/main/docs/design/architecture/README.md)).
//! The shim rewrites that file in place without a lock, so an incomplete file may be read. It is
//! never written here.

use std::{io::Read, path::Path, time::Duration};

use block_volume_qmp::{PathError, Trust, Untrusted};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::{
    agent_address::{AgentAddress, connect_trusted},
    run_file,
};
use crate::{Deadline, Error};

/// The maximum time that the shim may take.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum length of a response: addresses and error pages are shorter.
const MAX_BODY: usize = 16 << 10;
/// The maximum length of `persist.json`; Kata's has some ten kilobytes.
const MAX_STATE: u64 = 8 << 20;

/// The maximum length of a pidfile.
const MAX_PID: u64 = 32;

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

/// Why a shim did not tell its agent's address.
#[derive(Debug)]
pub enum NoUrl {
    /// The path to its socket, or who listens there, is not trusted.
    Untrusted(Untrusted),
    /// What went wrong, as a part of a sentence: the caller has a second source.
    Failed(String),
}

/// Asks the shim that listens on `socket` for its agent's address.
///
/// # Errors
/// It did not tell one.
pub async fn agent_url(
    socket: &Path,
    trust: &Trust,
    deadline: Deadline,
) -> Result<AgentAddress, NoUrl> {
    let failed = |what: String| NoUrl::Failed(format!("{}: {what}", socket.display()));
    let exchange = async {
        let stream = connect_trusted(socket, trust).await.map_err(|e| match e {
            PathError::Untrusted(why) => NoUrl::Untrusted(why),
            PathError::Io(e) => failed(e.to_string()),
        })?;
        agent_url_over(stream).await.map_err(failed)
    };
    match deadline.capped(TIMEOUT).wait(exchange).await {
        Ok(told) => told.map(|address| address.trusting(trust)),
        Err(_) => Err(failed("no reply to /agent-url".into())),
    }
}

/// Asks the shim at the other end of `stream` for its agent's address.
pub(crate) async fn agent_url_over(stream: UnixStream) -> Result<AgentAddress, String> {
    let body = get(stream, "/agent-url").await?;
    let text = String::from_utf8_lossy(&body);
    text.trim().parse().map_err(|_| "the reply to /agent-url is no address".to_owned())
}

async fn get(stream: UnixStream, path: &str) -> Result<Bytes, String> {
    let failed = |what: &dyn std::fmt::Display| what.to_string();
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

/// Reads `persist.json` as far as it can be parsed; a file that does not exist has nothing.
///
/// # Errors
/// It cannot be read, or somebody else than the runtime can change it.
pub fn state(file: &Path, trust: &Trust) -> Result<State, Error> {
    let Some(opened) = run_file::open(file, trust)? else { return Ok(State::default()) };
    let mut text = Vec::new();
    opened.take(MAX_STATE).read_to_end(&mut text).map_err(|e| Error::system("read", file, e))?;
    let state = State::parse(&text);
    Ok(State { agent: state.agent.map(|address| address.trusting(trust)), ..state })
}

/// Reads the process ID in a pidfile; `None` if the file does not exist or has none.
///
/// # Errors
/// As [`state`].
pub fn pidfile(file: &Path, trust: &Trust) -> Result<Option<i32>, Error> {
    let Some(opened) = run_file::open(file, trust)? else { return Ok(None) };
    let mut text = Vec::new();
    opened.take(MAX_PID).read_to_end(&mut text).map_err(|e| Error::system("read", file, e))?;
    let pid = str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
    Ok(pid.filter(|&pid| pid > 0))
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

    async fn agent_url_of(answer: &'static str, hold: bool) -> Result<AgentAddress, NoUrl> {
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
        agent_url(&socket, &Trust::root(), Deadline::after(Duration::from_millis(500))).await
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
        let state = state(file.path(), &Trust::root()).unwrap();
        assert_eq!((state.hypervisor.as_deref(), state.agent.is_some()), (hypervisor, agent));
    }

    #[rstest]
    #[case("4711", Some(4711))]
    #[case("4711\n", Some(4711))]
    #[case("0", None)]
    #[case("-5", None)]
    #[case("x", None)]
    #[case("", None)]
    fn a_pidfile_has_the_number_of_a_process(#[case] text: &str, #[case] pid: Option<i32>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(pidfile(file.path(), &Trust::root()).unwrap(), pid);
    }

    #[test]
    fn what_others_can_write_is_an_error_and_what_does_not_exist_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("persist.json");
        assert_eq!(state(&file, &Trust::root()).unwrap(), State::default());
        std::fs::write(&file, "{}").unwrap();
        let others = std::os::unix::fs::PermissionsExt::from_mode(0o646);
        std::fs::set_permissions(&file, others).unwrap();
        assert!(matches!(state(&file, &Trust::root()), Err(Error::Untrusted(_))));
        assert!(matches!(pidfile(&file, &Trust::root()), Err(Error::Untrusted(_))));
    }
}
