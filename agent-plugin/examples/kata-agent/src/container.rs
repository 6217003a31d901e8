//! The stub of the crates `rustjail` and `runtime-spec`: the parts of a container that the glue
//! reads.

use std::collections::HashMap;
use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::Spec;
use runtime_spec::ContainerState;

/// `rustjail::cgroups::Manager`.
pub trait Manager: Debug {
    /// Returns the full path of the container's cgroup in a controller's hierarchy.
    ///
    /// # Errors
    /// A kind of manager that has no path. (kata-agent returns an `anyhow::Error`.)
    fn get_cgroup_path(&self, cg: &str) -> io::Result<String>;
}

/// `rustjail::cgroups::fs::Manager`.
#[derive(Debug)]
pub struct FsManager {
    /// Of cgroup v1: by controller, of those that are mounted.
    paths: HashMap<String, String>,
    cpath: String,
}

impl FsManager {
    /// The manager of the cgroup `cpath`.
    pub fn new(cpath: &str) -> Self {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let mut paths = HashMap::new();
        for line in mounts.lines().filter(|line| line.contains(" - cgroup ")) {
            let (point, options) = (line.split(' ').nth(4), line.rsplit(' ').next());
            for controller in options.into_iter().flat_map(|options| options.split(',')) {
                let path = format!("{}/{}", point.unwrap_or_default(), cpath);
                paths.insert(controller.to_owned(), path);
            }
        }
        Self {
            paths,
            cpath: cpath.to_owned(),
        }
    }
}

impl Manager for FsManager {
    fn get_cgroup_path(&self, cg: &str) -> io::Result<String> {
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return Ok(format!("/sys/fs/cgroup/{}", self.cpath));
        }
        // As kata-agent does.
        Ok(self.paths.get(cg).map(|path| path.to_string()).unwrap())
    }
}

/// `rustjail::specconv::CreateOpts`.
#[derive(Debug, Default)]
pub struct Config {
    /// As passed to the agent, with the namespaces that the container got.
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
    pub cgroup_manager: Arc<dyn Manager + Send + Sync>,
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
