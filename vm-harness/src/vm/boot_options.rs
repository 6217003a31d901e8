//! What to boot, and with what.

use std::path::Path;

use crate::{Accelerator, Environment, Machine};

/// An image, the machine for it, and the QEMU of an environment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BootOptions<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) image: &'a Path,
    pub(crate) machine: &'a Machine,
    pub(crate) accelerator: Accelerator,
}
