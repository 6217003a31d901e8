//! The glue between this agent and agent-plugin, as in kata-agent with the plugin.

use std::sync::Arc;

use agent_plugin::{Agent, Container, ContainerError, Denied};
use async_trait::async_trait;
use serde_json::Value;

use crate::{policy::Policy, sandbox::SharedSandbox};

/// What the plugin needs from this agent.
pub(crate) struct BlockVolumeAgent {
    pub(crate) sandbox: SharedSandbox,
    pub(crate) policy: Arc<Policy>,
}

#[async_trait]
impl Agent for BlockVolumeAgent {
    async fn container(&self, id: &str) -> Result<Container, ContainerError> {
        self.sandbox.lock().await.container(id).ok_or(ContainerError::Unknown)?.running_handles()
    }

    async fn remains(&self, id: &str) -> Option<Container> {
        self.sandbox.lock().await.container(id)?.remains()
    }

    async fn authorize(&self, method: &str, request: &Value) -> Result<(), Denied> {
        self.policy.check(method, request).map_err(|error| Denied(error.to_string()))
    }
}
