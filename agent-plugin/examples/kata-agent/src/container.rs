//! The stub of the crates `rustjail` and `runtime-spec`: of a container what the glue reads.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use runtime_spec::ContainerState;

/// `rustjail::cgroups::Manager`.
pub trait Manager: Debug {
    /// The whole path of the container's group in a controller's hierarchy.
    ///
    /// # Errors
    /// There is none (kata-agent's error is anyhow's).
    fn get_cgroup_path(&self, cg: &str) -> io::Result<String>;
}

/// `rustjail::specconv::CreateOpts`.
#[derive(Debug, Default)]
pub struct Config {
    /// As the agent was given it, with the namespaces that the container got.
    pub spec: Option<Spec>,
}

/// The methods are a trait's in kata-agent, too.
pub trait BaseContainer {
    /// What the agent last did to it.
    fn status(&self) -> ContainerState;
}

/// A container.
#[derive(Debug)]
pub struct LinuxContainer {
    /// What it was made from.
    pub config: Config,
    /// Of its group.
    pub cgroup_manager: Arc<dyn Manager + Send + Sync>,
    /// A `pid_t`.
    pub init_process_pid: libc::pid_t,
    /// kata-agent has a type of its own here.
    pub status: ContainerState,
}

impl BaseContainer for LinuxContainer {
    fn status(&self) -> ContainerState {
        self.status
    }
}
