//! What to check, and on what.

use std::time::Duration;

use super::Mode;
use crate::Environment;

/// A run of the suite.
#[derive(Debug, Clone)]
pub struct Conformance {
    /// QEMU, and the image with the agent.
    pub environment: Environment,
    /// Name of the image to which the caller's overrides are applied.
    pub image: String,
    /// The kinds of guests; each has its own VM.
    pub modes: Vec<Mode>,
    /// Further parameters of the kernel command line.
    pub kernel_parameters: Vec<String>,
    /// Runs only checks with one of these in their name; all if empty.
    pub only: Vec<String>,
    /// The value of `--timeout` for `ecr-runtime`.
    pub timeout: Duration,
}

impl Conformance {
    /// Returns a run of all checks in all modes.
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            image: "default".to_owned(),
            modes: Mode::ALL.to_vec(),
            kernel_parameters: Vec::new(),
            only: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }
}
