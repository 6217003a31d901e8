//! The stub's `sandbox.rs`: the containers, behind the agent's single lock.

use std::collections::HashMap;

use rustjail::container::LinuxContainer;

/// kata-agent's state of the guest.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    /// By container ID.
    pub(crate) containers: HashMap<String, LinuxContainer>,
}
