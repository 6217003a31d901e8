//! The options by which `boot` and `conformance` take a guest of the caller's: agent, policy,
//! kernel, QEMU.

use std::path::PathBuf;

use clap::Args;
use vm_harness::Environment;

/// The highest port; the number above it is `VMADDR_PORT_ANY`.
const LAST_PORT: i64 = u32::MAX as i64 - 1;

/// What the caller puts in place of this build's own.
#[derive(Debug, Args)]
pub(crate) struct GuestOptions {
    /// The agent's binary, taken with the shared libraries that it needs; it becomes PID 1 of the
    /// guest, and is never run on this machine [default: the reference agent]
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_AGENT")]
    agent: Option<PathBuf>,
    /// The agent's policy: .rego for kata-agent, .json for the reference agent
    #[arg(long, value_name = "FILE", env = "VM_HARNESS_POLICY")]
    policy: Option<PathBuf>,
    /// The vsock port on which the agent serves the plugin, if that is not the agent's own port
    /// (agent_plugin::serve)
    #[arg(
        long,
        value_name = "PORT",
        env = "VM_HARNESS_PLUGIN_PORT",
        value_parser = clap::value_parser!(u32).range(..=LAST_PORT)
    )]
    plugin_port: Option<u32>,
    /// The guest's kernel: the directory of an unpacked package, or a kernel that needs no modules
    /// [default: the kernel that ci/setup fetched]
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_KERNEL")]
    kernel: Option<PathBuf>,
    /// Directory whose files are added to the guest's root; shared libraries are searched there
    /// first
    #[arg(long, value_name = "DIR", env = "VM_HARNESS_INITRD_EXTRA")]
    initrd_extra: Option<PathBuf>,
    /// QEMU's binary
    #[arg(long, value_name = "PATH", env = "VM_HARNESS_QEMU")]
    qemu: Option<PathBuf>,
    /// A further parameter of the kernel command line; may be repeated
    #[arg(long, value_name = "PARAMETER")]
    pub(crate) kernel_param: Vec<String>,
}

impl GuestOptions {
    /// Returns the environment with these in place. clap has read the variables, too.
    pub(crate) fn environment(&self) -> Environment {
        let mut environment = Environment::from_variables();
        environment.overrides.agent.clone_from(&self.agent);
        environment.overrides.policy.clone_from(&self.policy);
        environment.overrides.kernel.clone_from(&self.kernel);
        environment.overrides.extra = self.initrd_extra.iter().cloned().collect();
        environment.plugin_port = self.plugin_port.map(|port| port.to_string());
        if let Some(qemu) = &self.qemu {
            environment.qemu.clone_from(qemu);
        }
        environment
    }
}
