//! The stub's `sandbox.rs`: the containers, behind the agent's one lock.

use std::collections::HashMap;

use rustjail::container::LinuxContainer;

/// What kata-agent knows of its guest.
#[derive(Debug, Default)]
pub(crate) struct Sandbox {
    /// By id.
    pub(crate) containers: HashMap<String, LinuxContainer>,
}
