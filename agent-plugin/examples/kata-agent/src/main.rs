//! The glue between kata-agent and agent-plugin, compiled and run. `block_volume.rs` and the files
//! in `block_volume` are those that the builder's guide (`docs/builders-guide.md`) adds to
//! kata-agent. The other files are a stub of kata-agent: only what the glue needs, and the lines of
//! kata-agent that the guide's lines are put between (`agent-plugin/upstream`).
//!
//! `kata-agent-example ADDRESS PID [trace]` serves a sandbox with one container, `c1`, whose first
//! process is PID.

// The glue names two crates of kata-agent's workspace. This one stands in for both.
extern crate self as runtime_spec;
extern crate self as rustjail;

pub mod container;
mod features;
mod sandbox;

#[cfg(feature = "block-volume")]
mod block_volume;
mod rpc;
mod tracer;

#[cfg(feature = "agent-policy")]
mod policy;

#[cfg(all(test, feature = "block-volume"))]
mod audit_log_tests;
#[cfg(all(test, feature = "agent-policy", feature = "block-volume"))]
mod cgroup_tests;
#[cfg(all(test, feature = "block-volume"))]
mod no_pause;
#[cfg(all(test, feature = "agent-policy"))]
mod policy_tests;
#[cfg(all(test, feature = "agent-policy", feature = "block-volume"))]
mod tests;

use std::env;
use std::error::Error;
use std::sync::Arc;

use container::{Config, FsManager, LinuxContainer};
use sandbox::Sandbox;
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
    // kata-agent's logger writes JSON to the console.
    slog_scope::set_global_logger(Logger::root(Discard, o!())).cancel_reset();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (address, pid) = match arguments.as_slice() {
        [address, pid] => (address, pid),
        [address, pid, trace] if trace == "trace" => {
            tracing::subscriber::set_global_default(tracer::setup_tracing())?;
            (address, pid)
        }
        _ => return Err("usage: kata-agent-example ADDRESS PID [trace]".into()),
    };
    let container = LinuxContainer {
        config: Config::default(),
        cgroup_manager: Arc::new(FsManager::new("/")),
        init_process_pid: pid.parse()?,
        status: ContainerState::Running,
    };
    let mut sandbox = Sandbox::default();
    sandbox.containers.insert("c1".to_owned(), container);
    let mut server = rpc::start(Arc::new(Mutex::new(sandbox)), address).await?;
    server.start().await?;
    println!("serving at {}", address);
    tokio::signal::ctrl_c().await?;
    Ok(server.shutdown().await?)
}
