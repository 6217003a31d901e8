//! The glue between kata-agent and agent-plugin: looks up containers and asks the policy.

mod audit_log;
mod spec;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_plugin::{Agent, Container, ContainerError, Denied, DeviceRule};
use async_trait::async_trait;
use rustjail::container::{BaseContainer, LinuxContainer};
use tokio::sync::Mutex;

use crate::sandbox::Sandbox;

pub(crate) use audit_log::AuditLog;
use spec::ContainerState;

/// Returns this agent, as the plugin sees it.
pub(crate) fn agent(sandbox: Arc<Mutex<Sandbox>>) -> Arc<BlockVolume> {
    AuditLog::start();
    Arc::new(BlockVolume { sandbox })
}

/// What the plugin needs from this agent.
pub(crate) struct BlockVolume {
    pub(crate) sandbox: Arc<Mutex<Sandbox>>,
}

#[async_trait]
impl Agent for BlockVolume {
    async fn container(&self, id: &str) -> Result<Container, ContainerError> {
        let hierarchies = hierarchies();
        // No await while the lock is held.
        let sandbox = self.sandbox.lock().await;
        let container = sandbox.containers.get(id).ok_or(ContainerError::Unknown)?;
        match container.status() {
            ContainerState::Creating | ContainerState::Created => Err(ContainerError::Created),
            ContainerState::Paused => Err(ContainerError::Paused),
            ContainerState::Stopped => Err(ContainerError::Stopped),
            // As of the agent's last check. The plugin detects that the process has ended.
            ContainerState::Running => handles(container, &hierarchies),
        }
    }

    /// Processes that survive a container's first one keep its nodes and rights, until a detach
    /// removes both. A paused container gets no volume, and can lose one.
    async fn remains(&self, id: &str) -> Option<Container> {
        let hierarchies = hierarchies();
        let sandbox = self.sandbox.lock().await;
        let container = sandbox.containers.get(id)?;
        if container.status() == ContainerState::Paused {
            return handles(container, &hierarchies).ok();
        }
        let namespace = container
            .config
            .spec
            .as_ref()
            .and_then(spec::mount_namespace)?;
        let cgroup = cgroup(container, &hierarchies).ok()?;
        Container::remains(&namespace, cgroup, rules(container)).ok()
    }

    #[cfg(feature = "agent-policy")]
    async fn authorize(&self, method: &str, request: &serde_json::Value) -> Result<(), Denied> {
        let allowed = crate::policy::is_allowed_with_entrypoint(method, request).await;
        allowed.map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => Denied(status.message),
            error => Denied(error.to_string()),
        })
    }

    /// An agent without a policy allows everything, as it does for its own methods.
    #[cfg(not(feature = "agent-policy"))]
    async fn authorize(&self, _: &str, _: &serde_json::Value) -> Result<(), Denied> {
        Ok(())
    }
}

fn handles(
    container: &LinuxContainer,
    hierarchies: &[PathBuf],
) -> Result<Container, ContainerError> {
    let spec = container.config.spec.as_ref();
    let mount_namespace = spec
        .and_then(spec::mount_namespace)
        .unwrap_or_else(|| PathBuf::from(format!("/proc/{}/ns/mnt", container.init_process_pid)));
    Container::of_process(
        container.init_process_pid,
        &mount_namespace,
        cgroup(container, hierarchies)?,
        rules(container),
    )
}

fn rules(container: &LinuxContainer) -> Vec<DeviceRule> {
    container
        .config
        .spec
        .as_ref()
        .map(spec::device_rules)
        .unwrap_or_default()
}

/// The container's cgroup below the mount point of its hierarchy.
///
/// Without a hierarchy the manager has no path to return, and panics if it is asked for one, with
/// the sandbox's lock held. Then no cgroup decides about devices; the plugin finds that out itself.
fn cgroup(container: &LinuxContainer, hierarchies: &[PathBuf]) -> Result<PathBuf, ContainerError> {
    if hierarchies.is_empty() {
        return Ok(PathBuf::from("/"));
    }
    let unreachable = |reason| ContainerError::Unreachable(format!("its cgroup: {reason}"));
    let cgroup = container.cgroup_manager.get_cgroup_path("devices");
    let cgroup = cgroup.map_err(|error| unreachable(error.to_string()))?;
    let below = hierarchies
        .iter()
        .find_map(|point| Path::new(&cgroup).strip_prefix(point).ok());
    let below = below.ok_or_else(|| unreachable(format!("{cgroup} is in none of {hierarchies:?}")));
    Ok(Path::new("/").join(below?))
}

/// Where the hierarchy is mounted that the manager uses for devices: that of cgroup v2, where v2 is
/// the only one, else that of v1's devices controller, if there is one.
fn hierarchies() -> Vec<PathBuf> {
    // Only the root of cgroup v2 has a `cgroup.controllers`.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return vec![PathBuf::from("/sys/fs/cgroup")];
    }
    let mounts = fs::read("/proc/thread-self/mountinfo").unwrap_or_default();
    String::from_utf8_lossy(&mounts)
        .lines()
        .filter_map(devices_controller)
        .collect()
}

/// The mount point in a line of mountinfo, if it is one of the devices controller.
fn devices_controller(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let is_cgroup = kind.next() == Some("cgroup");
    let has_devices = kind.next_back()?.split(',').any(|name| name == "devices");
    let point = mount.split(' ').nth(4)?;
    (is_cgroup && has_devices).then(|| PathBuf::from(point))
}
