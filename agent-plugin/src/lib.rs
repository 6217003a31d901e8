//! Hot-plug of block volumes into running containers, inside the guest of a VM sandbox.
//!
//! An agent embeds this library: it implements [`Agent`] and registers [`service`] on its ttrpc
//! server, or calls [`serve`] for a port of its own. The API is the crate [`api`]. The builder's
//! guide in `README.md` leads from a kata-agent source tree to a kata-agent with the plugin, by the
//! file `examples/kata-agent/src/block_volume.rs`, and says what kernel and policy need.
//!
//! It makes no child process, needs no udev, and has no thread, timer or descriptor while no
//! request is under way.
//!
//! | module | knows |
//! |---|---|
//! | `service` | the wire: decodes, asks the agent, starts a thread, encodes (with `request`, `reply`, `policy`, `audit`) |
//! | `handles` | from a process's number to a [`Container`] that no later process can take over |
//! | `volume` | the sequences and their undo; no encoding |
//! | [`scsi`], [`block`], [`disk_stats`], [`uevent`], [`namespace`], [`ids`], [`mount`], [`device_node`], [`cgroup`], [`holders`] | one kernel interface each, and none of each other's |
//!
//! The modules of kernel interfaces are public for tests and fuzzers; agents need none of them.

// Unit tests share files with those in `tests`.
#[cfg(test)]
extern crate self as agent_plugin;

mod agent;
mod audit;
pub mod block;
pub mod cgroup;
pub mod device_node;
pub mod disk_stats;
mod error;
mod fault;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod handles;
pub mod holders;
pub mod ids;
mod inode;
mod listener;
pub mod mount;
mod mountinfo;
pub mod namespace;
mod policy;
mod reply;
mod request;
pub mod scsi;
mod service;
mod sysfs;
pub mod uevent;
mod volume;

pub use block_volume_api as api;

pub use agent::{Agent, Container, ContainerError, Denied, DeviceRule};
pub use error::{Error, Result, Unsupported};
pub use listener::incoming;
pub use service::{serve, service};
/// For the listeners that [`serve`] and [`incoming`] take: an agent may have another version of it.
pub use tokio_vsock;
