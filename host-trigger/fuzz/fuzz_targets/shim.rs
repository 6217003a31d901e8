//! What a shim tells of its sandbox. The first byte chooses: `h` its answer to `GET /agent-url`,
//! over a real socket; `j` its `persist.json`; `a` an address alone.

#![no_main]

use std::{path::Path, sync::LazyLock, time::Duration};

use host_trigger::{Deadline, agent::AgentAddress, fuzz, shim};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
    runtime::{Builder, Runtime},
};

/// Without a name in the file system: nothing is left.
static SOCKET: LazyLock<String> =
    LazyLock::new(|| format!("\0ecr-fuzz-shim-{}", std::process::id()));
static RUNTIME: LazyLock<(Runtime, UnixListener)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listener =
        runtime.block_on(async { UnixListener::bind(&*SOCKET) }).expect("an abstract socket");
    (runtime, listener)
});

fuzz_target!(|input: &[u8]| {
    let Some((&kind, bytes)) = input.split_first() else { return };
    match kind {
        b'h' => assert_address(answered(bytes)),
        b'j' => {
            let state = fuzz::state(bytes);
            assert!(state.hypervisor.is_none_or(|kind| !kind.is_empty()));
            assert_address(state.agent);
        }
        b'a' => assert_address(str::from_utf8(bytes).ok().and_then(|text| text.parse().ok())),
        _ => {}
    }
});

fn answered(answer: &[u8]) -> Option<AgentAddress> {
    let (runtime, listener) = &*RUNTIME;
    runtime.block_on(async {
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 1024];
            // A client that has gone already is fine.
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            let _ = stream.read(&mut request).await;
        };
        let client = shim::agent_url(Path::new(&*SOCKET), Deadline::after(Duration::from_secs(2)));
        tokio::join!(server, client).1.ok()
    })
}

fn assert_address(address: Option<AgentAddress>) {
    let Some(address) = address else { return };
    match &address {
        AgentAddress::Vsock { .. } => {}
        AgentAddress::Hybrid { path, .. } | AgentAddress::Unix { path } => {
            assert!(path.is_absolute())
        }
    }
    assert_eq!(address.to_string().parse().ok(), Some(address));
}
