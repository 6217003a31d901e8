//! The stub of the crate `rustjail`: the parts of a container that the glue reads.

use std::fmt::Debug;
use std::io;

use crate::{ContainerState, Spec};

/// `rustjail::cgroups::Manager`.
pub trait Manager: Debug {
    /// Returns the full path of the container's cgroup in a controller's hierarchy.
    ///
    /// # Errors
    /// A kind of manager that has no path. (kata-agent returns an `anyhow::Error`.)
    fn get_cgroup_path(&self, cg: &str) -> io::Result<String>;
}

/// `rustjail::specconv::CreateOpts`.
#[derive(Debug, Default)]
pub struct Config {
    /// As passed to the agent.
    pub spec: Option<Spec>,
}

/// A trait with this method, as in kata-agent.
pub trait BaseContainer {
    /// Returns the state after the agent's last action on the container.
    fn status(&self) -> ContainerState;
}

/// A container.
#[derive(Debug)]
pub struct LinuxContainer {
    /// The configuration that it was created with.
    pub config: Config,
    /// The manager of its cgroup.
    pub cgroup_manager: Box<dyn Manager + Send + Sync>,
    /// A `pid_t`.
    pub init_process_pid: libc::pid_t,
    /// kata-agent has its own type here.
    pub status: ContainerState,
}

impl BaseContainer for LinuxContainer {
    fn status(&self) -> ContainerState {
        self.status
    }
}
