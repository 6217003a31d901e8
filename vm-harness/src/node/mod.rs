//! A Debian node as a VM, as an administrator has it: systemd, containerd, the kernel's own
//! vhost-vsock, and the package of this tree. In it a suite plugs volumes into pods.
//!
//! | file | knows |
//! |---|---|
//! | `image` | what the node boots from: its disks, kernel and initramfs |
//! | `machine` | QEMU's command line for it |
//! | `run` | boots it, and passes on what it reports |
//! | `scenario` | its scenarios by name, and what each builds upon |
//! | `report` | what it reports: lines of JSON on a port of its virtio console |
//! | `suite` | what runs in it |

mod image;
mod machine;
pub mod report;
mod run;
mod scenario;
pub mod suite;

use std::path::PathBuf;

pub use scenario::Scenario;

/// What a node is made of.
#[derive(Debug, Clone)]
pub struct Node {
    /// The Debian package that is installed in it.
    pub package: PathBuf,
    /// A release of Kata: the directory with `opt/kata`. Without it pods are runc's, and the
    /// sandbox beside each is one of this harness.
    pub kata: Option<PathBuf>,
    /// Whether the agent in the guest image of that release contains the plugin. If not, a hot-plug
    /// must be refused, and leave nothing behind.
    pub plugin: bool,
    /// Whether the VMs in it are emulated, also if the node itself has KVM.
    pub emulated: bool,
    /// The scenarios that run, with what they build upon; all if none is named.
    pub scenarios: Vec<Scenario>,
}
