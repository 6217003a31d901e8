//! What a shim reports of its sandbox. The first byte of the input selects the rest: `h` a response
//! to `GET /agent-url`, over a real socket; `j` a `persist.json`; `a` only an address.

#![no_main]

use std::{sync::LazyLock, time::Duration};

use host_trigger::{Deadline, fuzz, kata::agent_address::AgentAddress};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    runtime::{Builder, Runtime},
};

/// An abstract socket: it leaves no file.
static SOCKET: LazyLock<String> =
    LazyLock::new(|| format!("\0ecr-fuzz-shim-{}", std::process::id()));
static RUNTIME: LazyLock<(Runtime, UnixListener)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("the runtime starts");
    let listener = runtime
        .block_on(async { UnixListener::bind(&*SOCKET) })
        .expect("the abstract socket is free");
    (runtime, listener)
});

fuzz_target!(|input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else { return };
    match kind {
        b'h' => assert_address(agent_url_of(bytes)),
        b'j' => {
            let state = fuzz::state(bytes);
            assert!(state.hypervisor.is_none_or(|kind| !kind.is_empty()));
            assert_address(state.agent);
        }
        b'a' => assert_address(str::from_utf8(bytes).ok().and_then(|text| text.parse().ok())),
        _ => {}
    }
});

/// Requests the address from a server that sends `response`.
fn agent_url_of(response: &[u8]) -> Option<AgentAddress> {
    let (runtime, listener) = &*RUNTIME;
    runtime.block_on(async {
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            let mut request = [0; 1024];
            // The client may have disconnected already.
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(response).await;
            let _ = stream.shutdown().await;
            let _ = stream.read(&mut request).await;
        };
        let client = async {
            let stream = UnixStream::connect(&*SOCKET).await.expect("the server listens");
            let deadline = Deadline::after(Duration::from_secs(2));
            deadline.wait(fuzz::agent_url(stream)).await.ok()?.ok()
        };
        tokio::join!(server, client).1
    })
}

fn assert_address(address: Option<AgentAddress>) {
    let Some(address) = address else { return };
    match &address {
        AgentAddress::Vsock { .. } => {}
        AgentAddress::Hybrid { path, .. } | AgentAddress::Unix { path, .. } => {
            assert!(path.is_absolute())
        }
    }
    assert_eq!(address.to_string().parse().ok(), Some(address));
}
