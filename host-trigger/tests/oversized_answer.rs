//! An agent that announces more than it may send: the head of a
//! [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md) frame has a length of four
//! bytes, and a message at most 4 MiB. A guest that was taken over can write any number there; it
//! gets neither more time than the call has, nor memory.

use std::{
    fs,
    time::{Duration, Instant},
};

use host_trigger::{
    Deadline, Error,
    agent::{self, Agent, AgentAddress},
};
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};

const HEAD: usize = 10;
const LARGEST: u32 = 4 << 20;
const RESPONSE: u8 = 2;
/// What the call has.
const LIMIT: Duration = Duration::from_secs(2);

/// What comes behind the head.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// Nothing, and the connection stays open.
    Nothing,
    /// Nothing, and the connection ends.
    End,
    /// As many bytes as announced.
    Whole,
    /// Bytes for as long as they are read, and not so fast that all that was announced comes in
    /// time.
    Endless,
}

/// Asks an agent that answers with such a frame: what came of it, and how long that took.
async fn ask(length: u32, body: Body) -> (Error, Duration) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let stream_id = read_request(&mut stream).await;
        let head = [&length.to_be_bytes()[..], &stream_id, &[RESPONSE, 0]].concat();
        stream.write_all(&head).await.unwrap();
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
    let deadline = Deadline::after(LIMIT);
    let client = agent::dial(&AgentAddress::Unix { path }, deadline).await.unwrap();
    let error = Agent::new(client).probe("", Vec::new(), deadline).await.unwrap_err();
    server.abort();
    (error, began.elapsed())
}

/// Reads one whole request, and returns its stream's number as it came.
async fn read_request(stream: &mut UnixStream) -> [u8; 4] {
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).await.unwrap();
    let [l0, l1, l2, l3, s0, s1, s2, s3, _, _] = head;
    let mut request = vec![0; u32::from_be_bytes([l0, l1, l2, l3]) as usize];
    stream.read_exact(&mut request).await.unwrap();
    [s0, s1, s2, s3]
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[rstest]
#[case::and_says_no_more(u32::MAX, Body::Nothing)]
#[case::and_goes_on_and_on(u32::MAX, Body::Endless)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_announces_gigabytes_gets_the_calls_time_and_no_memory(
    #[case] length: u32,
    #[case] body: Body,
) {
    let before = peak();
    let (error, took) = ask(length, body).await;
    assert!(matches!(error, Error::AgentTimedOut { method: "Probe" }), "{error}");
    assert_eq!(error.class().exit_code, 7);
    assert!(took >= LIMIT && took < LIMIT * 2, "{took:?}");
    let grown = peak() - before;
    assert!(grown < 16 << 10, "{grown} KiB");
}

#[tokio::test]
async fn an_agent_that_announces_gigabytes_and_goes_is_lost_at_once() {
    let (error, took) = ask(u32::MAX, Body::End).await;
    assert!(matches!(error, Error::AgentLost { method: "Probe" }), "{error}");
    assert!(took < LIMIT, "{took:?}");
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_refused_when_it_is_there() {
    let (error, took) = ask(LARGEST + 1, Body::Whole).await;
    assert!(error.to_string().contains(&format!("message length {}", LARGEST + 1)), "{error}");
    assert!(took < LIMIT, "{took:?}");
}
