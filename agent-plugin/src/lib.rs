//! Hot-plug of block volumes into running containers, inside the guest of a VM sandbox.
//!
//! An agent embeds this library: it implements [`Agent`] and registers [`service()`] on its ttrpc
//! server, or calls [`serve`] for a port of its own. The API is the crate [`api`]. The builder's
//! guide in `docs/builders-guide.md` leads from a kata-agent source tree to a kata-agent with the
//! plugin, by the file `examples/kata-agent/src/block_volume.rs`, and describes the requirements on
//! kernel and policy.
//!
//! The library starts no child process, needs no udev, and has no thread and no timer while no
//! request is under way. It then has descriptors only because of containers without a device
//! filter: one of inotify while such a container has a volume, and one of each deleted disk whose
//! device node something still refers to.
//!
//! | module | does |
//! |---|---|
//! | `agent` | the interface to the agent: [`Agent`], [`Container`] |
//! | `handles` | opens a [`Container`] by a pid, safe against a reuse of the pid |
//! | `service` | the protocol: decodes a request, asks the agent, starts a thread, encodes the reply |
//! | `volume` | attach, detach, resize and inspect, with rollback; no encoding |
//! | [`scsi`], [`block`], [`disk_stats`], [`uevent`] | the disk: SCSI hosts and devices, block device, counters, events |
//! | [`namespace`], [`ids`], [`mount`], `inode`, [`device_node`] | the container's file system, and the node in it |
//! | [`cgroup`] | the device filter |
//! | [`holders`], `holder` | who keeps a disk in use |
//! | [`procfs`], `sysfs`, `pidfd` | kernel files and descriptors that several modules use |
//! | `error`, `unsupported` | every error, each with one reason of the API |
//! | `fault`, `fuzz` | fault points and parsers, for tests |
//!
//! The modules of kernel interfaces are public for tests and fuzzers; agents need none of them.

// One byte that is no UTF-8 must not make a file of the kernel unreadable (clippy.toml).
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
// Unit tests share files with those in `tests`.
#[cfg(test)]
extern crate self as agent_plugin;

mod agent;
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
mod holder;
pub mod holders;
pub mod ids;
mod inode;
pub mod mount;
pub mod namespace;
mod pidfd;
pub mod procfs;
pub mod scsi;
mod service;
mod sysfs;
mod text;
pub mod uevent;
mod unsupported;
mod volume;

pub use block_volume_api as api;

pub use agent::{Agent, Container, ContainerError, Denied, DeviceRule};
pub use error::{Error, Result};
pub use holder::{Holder, HolderKind};
pub use service::{incoming, serve, service};
/// For the listeners that [`serve`] and [`incoming`] take: an agent may have another version of it.
pub use tokio_vsock;
pub use unsupported::Unsupported;
