//! Hot-plug of block volumes into running containers, inside the guest of a VM sandbox.
//!
//! An agent embeds this library: it implements [`Agent`] and registers [`service()`] on its ttrpc
//! server, or calls [`serve`] for a port of its own. The API is the crate [`api`]. The builder's
//! guide in `docs/builders-guide.md` leads from a kata-agent source tree to a kata-agent with the
//! plugin, by the file `examples/kata-agent/src/block_volume.rs`, and describes the requirements on
//! kernel and policy.
//!
//! The library starts no child process, needs no udev, and has no thread and no timer while no
//! request is under way; the names of its threads begin with `block-volume`. It then has
//! descriptors only because of containers without a device filter: one of inotify while such a
//! container has a volume, and one of each deleted disk whose device node something still refers
//! to.
//!
//! | module | does |
//! |---|---|
//! | `agent` | the interface to the agent: [`Agent`], [`Container`] |
//! | `handles` | opens a [`Container`] by a pid, safe against a reuse of the pid |
//! | `service` | the protocol: decodes a request, asks the agent, starts a thread, encodes the reply |
//! | `volume` | attach, detach, resize and inspect, with rollback; no encoding |
//! | [`scsi`], [`block`], `disk_directory`, [`disk_stats`], [`uevent`] | the disk: SCSI hosts and devices, block device, counters, events |
//! | [`namespace`], [`ids`], [`mount`], `inode`, [`device_node`] | the container's file system, and the node in it |
//! | `private_dev` | nodes in a mount namespace of a thread's own |
//! | [`file_system`], [`mounted`] | the file system of a volume; where a container has it mounted |
//! | [`cgroup`] | the device filter |
//! | [`holders`], `holder` | who keeps a disk in use |
//! | [`procfs`], `sysfs`, `pidfd`, `named` | kernel files, descriptors, and calls by name, that several modules use |
//! | `thread`, `worker` | the plugin's threads: their names; a closure on one |
//! | `sorted` | sets in a sorted vector |
//! | `log` | lines of the log |
//! | `kernel` | what the guest's kernel lacks |
//! | `kernel_file` | reads files of `/proc` and sysfs |
//! | `error`, `boxed_error`, `unsupported` | every error, each with one reason of the API |
//! | `fault`, `fuzz` | fault points and parsers, for tests |
//!
//! The modules of kernel interfaces are public for tests and fuzzers only, and hidden: they are no
//! part of the API that a version promises. `cargo doc --document-private-items` describes them.

// One byte that is no UTF-8 must not make a file of the kernel unreadable (clippy.toml).
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
// Unit tests share files with those in `tests`.
#[cfg(test)]
extern crate self as agent_plugin;

mod agent;
#[doc(hidden)]
pub mod block;
mod boxed_error;
#[doc(hidden)]
pub mod cgroup;
#[doc(hidden)]
pub mod device_node;
mod disk_directory;
#[doc(hidden)]
pub mod disk_stats;
mod error;
mod fault;
#[doc(hidden)]
pub mod file_system;
mod file_system_error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod handles;
mod holder;
#[doc(hidden)]
pub mod holders;
#[doc(hidden)]
pub mod ids;
mod inode;
mod kernel;
mod kernel_file;
mod log;
#[doc(hidden)]
pub mod mount;
#[doc(hidden)]
pub mod mounted;
mod named;
#[doc(hidden)]
pub mod namespace;
mod node;
mod pidfd;
mod private_dev;
#[doc(hidden)]
pub mod procfs;
mod rename;
#[doc(hidden)]
pub mod scsi;
mod service;
mod sorted;
mod sysfs;
mod text;
mod thread;
#[doc(hidden)]
pub mod uevent;
mod unsupported;
mod volume;
mod worker;

pub use block_volume_api as api;

pub use agent::{Agent, Container, ContainerError, Denied, DeviceRule};
pub use error::{BoxedError, Conflict, Error, FileSystemError, InvalidField, Mismatch, Result};
pub use holder::{Holder, HolderKind};
pub use service::{incoming, serve, service};
/// For the listeners that [`serve`] and [`incoming`] take: an agent may have another version of it.
pub use tokio_vsock;
pub use unsupported::Unsupported;
