//! Boots real QEMU VMs and tests block-volume hot-plug end to end.
//!
//! A [`Sandbox`] is a VM with an agent and a run directory as a Kata host would have it: QEMU with a virtio-scsi controller,
//! vsock by vhost-device-vsock, containers through Kata's agent protocol. A test starts a container, makes a [`Volume`], calls
//! `ecr-runtime` as a process and compares bytes on both sides:
//!
//! ```no_run
//! use vm_harness::{Machine, Sandbox, Volume};
//!
//! # async fn test() {
//! let sandbox = Sandbox::boot(&Machine::default()).await.unwrap();
//! let container = sandbox.start_container().await;
//! let volume = Volume::image(16 << 20);
//! let plugged = sandbox.hot_plug(&container, &volume, "/dev/xvda").await;
//! assert_eq!(container.read("/dev/xvda", 0..4096).await, volume.bytes(0..4096));
//! # }
//! ```
//!
//! Nothing is left behind: dropping the sandbox ends QEMU and its helpers, and a guest whose kernel reported a fault fails
//! the test. A wait for a guest that dies ends at once, with the console's last lines and a command to repeat it.
//!
//! Layout: [`Machine`] is QEMU's command line, [`Guest`] the running machine, [`Agent`] and [`Container`] speak Kata's
//! protocol, [`Observer`] looks at the guest beside the agent, [`EcrRuntime`] is the command under test, [`Snapshot`] proves
//! that nothing changed, [`QmpProxy`] and [`AgentProxy`] record the traffic of a call and disturb it.

mod accelerator;
mod agent;
pub mod conformance;
mod console;
mod container;
mod ecr_runtime;
mod environment;
mod error;
mod exec;
mod footprint;
mod guest;
mod held;
mod observer;
mod parts;
mod process;
mod proxy;
mod qemu;
mod run_dir;
mod sandbox;
mod snapshot;
mod spec;
mod terminal;
mod unplug;
mod volume;
mod vsock;

pub use accelerator::{Accelerator, Choice};
pub use agent::Agent;
pub use console::{Console, printable};
pub use container::Container;
pub use ecr_runtime::{EcrRuntime, Finished, Plugged};
pub use environment::Environment;
pub use error::Error;
pub use exec::Output;
pub use footprint::Footprint;
pub use guest::{AWAITS, Guest};
pub use held::Held;
pub use observer::{Conversation, Observer, Ran};
pub use parts::Parts;
pub use process::Process;
pub use proxy::{AgentProxy, Fault, Message, QmpProxy, Rule, command, event, greeting, reply_to};
pub use qemu::{Cgroup, Machine, Scan};
pub use run_dir::RunDir;
pub use sandbox::Sandbox;
pub use snapshot::Snapshot;
pub use spec::{ContainerOptions, DeviceFilter, mount};
pub use terminal::TerminalSize;
pub use unplug::remove_from_qemu;
pub use volume::{LoopOptions, Volume, random_bytes};
