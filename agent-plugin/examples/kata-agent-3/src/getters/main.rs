//! The glue between kata-agent 3.8 to 3.32 and agent-plugin, compiled against a stub. The glue is
//! that of `examples/kata-agent`, unchanged, and `own_port.rs`: the agent's ttrpc is older than the
//! plugin's, and this binary has both.
//!
//! `kata-agent-3-example ADDRESS` serves an agent without containers, with the plugin's port.

// The glue names two crates of kata-agent's workspace. This one stands in for both.
extern crate self as runtime_spec;
extern crate self as rustjail;

#[cfg(feature = "block-volume")]
mod block_volume;
pub mod container;
#[cfg(feature = "block-volume")]
mod own_port;
#[cfg(feature = "agent-policy")]
mod policy;
mod rpc;
mod sandbox;
#[cfg(all(test, feature = "agent-policy", feature = "block-volume"))]
mod tests;

use std::error::Error;
use std::sync::Arc;

pub(crate) use oci_spec::runtime::Spec;
use slog::{o, Discard, Logger};
use tokio::sync::Mutex;

/// `runtime_spec::ContainerState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    /// Being created.
    Creating,
    /// Not started.
    Created,
    /// Started. It stays so when its process ends.
    Running,
    /// Being removed.
    Stopped,
    /// Frozen.
    Paused,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    slog_scope::set_global_logger(Logger::root(Discard, o!())).cancel_reset();
    let address = std::env::args()
        .nth(1)
        .ok_or("usage: kata-agent-3-example ADDRESS")?;
    let sandbox = sandbox::Sandbox::default();
    println!(
        "serving {} containers at {}",
        sandbox.containers.len(),
        address
    );
    let mut server = rpc::start(Arc::new(Mutex::new(sandbox)), &address).await?;
    server.start().await?;
    std::future::pending().await
}
