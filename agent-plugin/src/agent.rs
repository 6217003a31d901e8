//! The interface to the agent that hosts the plugin. The plugin knows nothing else of the agent.

use std::{os::fd::OwnedFd, path::PathBuf};

use async_trait::async_trait;

/// The agent that hosts the plugin.
///
/// All methods may take the agent's lock, and must have released it when they return: the plugin
/// never calls the agent while it works on a volume.
#[async_trait]
pub trait Agent: Send + Sync + 'static {
    /// Returns the running container `id`.
    ///
    /// # Errors
    /// Why no volume can be attached to it.
    async fn container(&self, id: &str) -> Result<Container, ContainerError>;

    /// Decides by the agent's policy on `method` (`"ProbeBlockVolumeRequest"`, …) with the request
    /// as JSON.
    ///
    /// There is no default on purpose: an agent without a policy states that in one line.
    ///
    /// # Errors
    /// The request is denied; the text is returned to the caller.
    async fn authorize(&self, method: &str, request: &serde_json::Value) -> Result<(), Denied>;

    /// What a volume can be removed from, where [`container`](Self::container) returned
    /// [`ContainerError::Stopped`]: [`Container::remains`], or [`ContainerError::Paused`]: the
    /// handles of the container.
    ///
    /// A detach from a paused container is refused without this method. Other processes of a
    /// container may survive its first one, where that is not the first process of its pid
    /// namespace. They keep its device nodes and its rights, so a detach removes both. Without this
    /// method they keep them until they end; the disk is removed anyway.
    async fn remains(&self, _id: &str) -> Option<Container> {
        None
    }
}

/// A running container, by handles that no later process can take over. [`Container::of_process`]
/// opens them by the pid of a process.
#[derive(Debug)]
pub struct Container {
    /// [`pidfd`](https://man7.org/linux/man-pages/man2/pidfd_open.2.html) of the container's first
    /// process.
    pub init: OwnedFd,
    /// Its mount namespace (`/proc/PID/ns/mnt`), opened when the container started.
    pub mount_namespace: OwnedFd,
    /// Its user namespace, where it is not the agent's own.
    pub user_namespace: Option<OwnedFd>,
    /// Its cgroup below the root of the hierarchy: `/pod/c1`.
    pub cgroup: PathBuf,
    /// The device rules of its specification, in order.
    pub device_rules: Vec<DeviceRule>,
}

/// One entry of `linux.resources.devices` in the container's specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allow, else deny.
    pub allow: bool,
    /// `'a'`, `'b'` or `'c'`.
    pub kind: char,
    /// `None` for every number.
    pub major: Option<u32>,
    /// `None` for every number.
    pub minor: Option<u32>,
    /// A subset of `"rwm"`.
    pub access: String,
}

/// Why no volume can be attached to a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// The agent knows no container of this id.
    #[error("the agent knows no such container")]
    Unknown,
    /// It was created and not started.
    #[error("the container was created, not started")]
    Created,
    /// Its first process has ended.
    #[error("the container has stopped")]
    Stopped,
    /// It is paused.
    #[error("the container is paused")]
    Paused,
    /// A handle could not be opened.
    #[error("the agent cannot reach the container: {0}")]
    Unreachable(String),
}

/// The agent's policy denies a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Denied(pub String);
