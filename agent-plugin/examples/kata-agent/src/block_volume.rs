//! The glue between kata-agent and agent-plugin: looks up containers and asks the policy.

use std::collections::HashMap;
use std::convert::TryFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_plugin::{Agent, Container, ContainerError, Denied, DeviceRule};
use async_trait::async_trait;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Spec};
use runtime_spec::ContainerState;
use rustjail::container::{BaseContainer, LinuxContainer};
use tokio::sync::Mutex;

use crate::sandbox::Sandbox;

/// Returns the plugin's service, for `Server::register_service`.
pub(crate) fn service(sandbox: Arc<Mutex<Sandbox>>) -> HashMap<String, ttrpc::r#async::Service> {
    agent_plugin::service(Arc::new(BlockVolume { sandbox }))
}

/// What the plugin needs from this agent.
pub(crate) struct BlockVolume {
    pub(crate) sandbox: Arc<Mutex<Sandbox>>,
}

#[async_trait]
impl Agent for BlockVolume {
    async fn container(&self, id: &str) -> Result<Container, ContainerError> {
        // No await while the lock is held.
        let sandbox = self.sandbox.lock().await;
        let container = sandbox.containers.get(id).ok_or(ContainerError::Unknown)?;
        match container.status() {
            ContainerState::Creating | ContainerState::Created => Err(ContainerError::Created),
            ContainerState::Paused => Err(ContainerError::Paused),
            ContainerState::Stopped => Err(ContainerError::Stopped),
            // As of the agent's last check. The plugin detects that the process has ended.
            ContainerState::Running => handles(container),
        }
    }

    /// Processes that survive a container's first one keep its nodes and rights, until a detach
    /// removes both.
    async fn remains(&self, id: &str) -> Option<Container> {
        let sandbox = self.sandbox.lock().await;
        let container = sandbox.containers.get(id)?;
        let namespace = container.config.spec.as_ref().and_then(mount_namespace)?;
        Container::remains(&namespace, cgroup(container).ok()?, rules(container)).ok()
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

fn handles(container: &LinuxContainer) -> Result<Container, ContainerError> {
    let spec = container.config.spec.as_ref();
    let mount_namespace = spec
        .and_then(mount_namespace)
        .unwrap_or_else(|| PathBuf::from(format!("/proc/{}/ns/mnt", container.init_process_pid)));
    Container::of_process(
        container.init_process_pid,
        &mount_namespace,
        cgroup(container)?,
        rules(container),
    )
}

fn cgroup(container: &LinuxContainer) -> Result<PathBuf, ContainerError> {
    let cgroup = container.cgroup_manager.get_cgroup_path("devices");
    let cgroup =
        cgroup.map_err(|error| ContainerError::Unreachable(format!("its cgroup: {error}")))?;
    Ok(below_hierarchy(&cgroup))
}

fn rules(container: &LinuxContainer) -> Vec<DeviceRule> {
    container.config.spec.as_ref().map(device_rules).unwrap_or_default()
}

/// kata-agent 4.x keeps the namespaces of a container open; the specification holds the paths of
/// its descriptors.
fn mount_namespace(spec: &Spec) -> Option<PathBuf> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    let mount = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Mount)?;
    mount.path().clone().filter(|path| !path.as_os_str().is_empty())
}

/// The manager returns the full path; the plugin expects the part below the mount point. Only the
/// root of cgroup v2 has a `cgroup.controllers`.
fn below_hierarchy(path: &str) -> PathBuf {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let mount_point = if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/devices" };
    Path::new("/")
        .join(Path::new(path).strip_prefix(mount_point).unwrap_or_else(|_| Path::new(path)))
}

fn device_rules(spec: &Spec) -> Vec<DeviceRule> {
    let linux = spec.linux().as_ref();
    let rules = linux.and_then(|linux| linux.resources().as_ref()?.devices().as_ref());
    rules.map(|rules| rules.iter().filter_map(device_rule).collect()).unwrap_or_default()
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Option<DeviceRule> {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => 'a',
        Some(LinuxDeviceType::B) => 'b',
        Some(LinuxDeviceType::C) | Some(LinuxDeviceType::U) => 'c',
        // Not a device.
        Some(LinuxDeviceType::P) => return None,
    };
    // -1 also means all numbers.
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    Some(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major()),
        minor: number(rule.minor()),
        access: rule.access().clone().unwrap_or_default(),
    })
}
