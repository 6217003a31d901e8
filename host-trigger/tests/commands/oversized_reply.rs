//! An agent that announces a longer reply than it may send. The header of a
//! [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md) frame has a length of four
//! bytes, and a message has at most 4 MiB. A compromised guest can write any length there. It costs
//! neither more time than the call has, nor memory.

use std::{
    fs,
    time::{Duration, Instant},
};

use host_trigger::{
    Deadline, Error,
    kata::{
        agent::Agent,
        agent_address::{self, AgentAddress},
    },
};
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

const HEADER_LENGTH: usize = 10;
const MAX_LENGTH: u32 = 4 << 20;
const RESPONSE: u8 = 2;
/// The timeout of the call.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What follows the header.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// Nothing; the connection stays open.
    Nothing,
    /// Nothing; the connection ends.
    End,
    /// As many bytes as were announced.
    Whole,
    /// Bytes for as long as they are read, too slowly for the announced length to arrive in time.
    Endless,
}

/// Calls an agent that replies with such a frame. Returns the error and how long the call took.
async fn call(length: u32, body: Body) -> (Error, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let stream_id = read_request(&mut stream).await;
        let header = [&length.to_be_bytes()[..], &stream_id, &[RESPONSE, 0]].concat();
        stream.write_all(&header).await.unwrap();
        let chunk = vec![0; 1 << 16];
        let mut left = match body {
            Body::End => return,
            Body::Nothing => 0,
            Body::Whole => length as usize,
            Body::Endless => usize::MAX,
        };
        while left > 0 {
            let Ok(written) = stream.write(&chunk[..chunk.len().min(left)]).await else { return };
            left -= written;
            if matches!(body, Body::Endless) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        std::future::pending::<()>().await;
    });
    let began = Instant::now();
    let deadline = Deadline::after(TIMEOUT);
    let address: AgentAddress = format!("unix://{}", path.display()).parse().unwrap();
    let client = agent_address::dial(&address, deadline).await.unwrap();
    let error = Agent::new(client).probe("", Vec::new(), Vec::new(), deadline).await.unwrap_err();
    server.abort();
    (error, began.elapsed())
}

/// Reads one whole request and returns the bytes of its stream ID.
async fn read_request(stream: &mut UnixStream) -> [u8; 4] {
    let mut header = [0; HEADER_LENGTH];
    stream.read_exact(&mut header).await.unwrap();
    let [l0, l1, l2, l3, s0, s1, s2, s3, _, _] = header;
    let mut request = vec![0; u32::from_be_bytes([l0, l1, l2, l3]) as usize];
    stream.read_exact(&mut request).await.unwrap();
    [s0, s1, s2, s3]
}

/// Returns the peak memory of this process (`VmHWM`), in KiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[rstest]
#[case::followed_by_nothing(u32::MAX, Body::Nothing)]
#[case::followed_by_endless_data(u32::MAX, Body::Endless)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announcement_of_gigabytes_costs_the_time_of_the_call_and_no_memory(
    #[case] length: u32,
    #[case] body: Body,
) {
    let before = peak_memory();
    let (error, took) = call(length, body).await;
    assert!(matches!(error, Error::AgentTimedOut { method: "Probe" }), "{error}");
    assert_eq!(error.class().exit_status.code(), 7);
    assert!(took >= TIMEOUT && took < TIMEOUT * 2, "{took:?}");
    let grown = peak_memory() - before;
    assert!(grown < 16 << 10, "{grown} KiB");
}

#[tokio::test]
async fn an_agent_that_announces_gigabytes_and_disconnects_is_lost_immediately() {
    let (error, took) = call(u32::MAX, Body::End).await;
    assert!(matches!(error, Error::AgentLost { method: "Probe" }), "{error}");
    assert!(took < TIMEOUT, "{took:?}");
}

#[tokio::test]
async fn a_reply_that_is_too_long_is_refused_when_it_has_arrived() {
    let (error, took) = call(MAX_LENGTH + 1, Body::Whole).await;
    assert!(error.to_string().contains(&format!("message length {}", MAX_LENGTH + 1)), "{error}");
    assert!(took < TIMEOUT, "{took:?}");
}
