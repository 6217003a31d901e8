//! The glue between kata-agent and agent-plugin, compiled and run. `block_volume.rs` is the file
//! that the builder's guide (`docs/builders-guide.md`) adds to kata-agent. The other files are a
//! stub of kata-agent: only what the glue needs.
//!
//! `kata-agent-example ADDRESS PID [PORT]` serves a sandbox with one container, `c1`, whose first
//! process is PID. With PORT it also serves the plugin on its own vsock port.

// The glue names two crates of kata-agent's workspace. This one stands in for both.
extern crate self as runtime_spec;
extern crate self as rustjail;

#[cfg(feature = "block-volume")]
mod block_volume;
pub mod container;
mod features;
#[cfg(feature = "block-volume")]
mod no_pause;
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
use std::{env, io};

use container::{Config, LinuxContainer, Manager};
use sandbox::Sandbox;
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

/// The root cgroup, which holds this process's containers.
#[derive(Debug)]
struct RootGroup;

impl Manager for RootGroup {
    fn get_cgroup_path(&self, cg: &str) -> io::Result<String> {
        Ok(format!("/sys/fs/cgroup/{}/", cg))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (address, pid, port) = match arguments.as_slice() {
        [address, pid] => (address, pid.parse()?, None),
        [address, pid, port] if cfg!(feature = "block-volume") => {
            (address, pid.parse()?, Some(port.parse::<u32>()?))
        }
        _ => return Err("usage: kata-agent-example ADDRESS PID [PORT]".into()),
    };
    let container = LinuxContainer {
        config: Config::default(),
        cgroup_manager: Arc::new(RootGroup),
        init_process_pid: pid,
        status: ContainerState::Running,
    };
    let mut sandbox = Sandbox::default();
    sandbox.containers.insert("c1".to_owned(), container);
    let sandbox = Arc::new(Mutex::new(sandbox));
    if let Some(port) = port {
        #[cfg(feature = "block-volume")]
        own_port::serve(sandbox.clone(), port)?;
        println!("serving block volumes at vsock port {}", port);
    }
    let mut server = rpc::start(sandbox, address)?;
    server.start().await?;
    println!("serving at {}", address);
    tokio::signal::ctrl_c().await?;
    Ok(server.shutdown().await?)
}
