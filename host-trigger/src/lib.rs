//! The host's side of a block volume hot-plug: it passes a host block volume to the QEMU of a
//! running Kata Containers sandbox and asks the agent in the guest to attach it to a running
//! container.
//!
//! It keeps no state of its own (QEMU does, see [`qemu::inventory`]), runs no daemon, and knows
//! nothing of the guest but the API `blockvolume.v1` (the crate `block-volume-api`). The binary
//! `ecr-runtime` is [`command_line::run`].
//!
//! | module | what its files may talk to |
//! |---|---|
//! | [`command_line`] | the whole program: runs a verb, prints and audits its result |
//! | [`commands`] | one verb each: `cli`, `ops`, `output`, and what `ops` may talk to |
//! | [`cli`] | clap: arguments that several verbs share |
//! | [`ops`] | QEMU, the guest and the host, by way of the three below |
//! | [`qemu`] | QEMU's monitor: what QEMU holds for us |
//! | [`kata`] | the state directories of Kata, the shim, the agent |
//! | [`cri`] | the container engine: which sandbox and containers a pod has |
//! | [`host`] | devices, files and processes of this host |
//! | [`output`] | standard output, standard error, the audit log |
//! | [`wrapper`] | the second binary, `ecr-qemu`: gives QEMU a second monitor, and becomes QEMU |
//!
//! Imports go one way: `command_line` → `commands` → `ops` → `qemu`, `cri`, `kata`, `host`;
//! only
//! `commands` and `command_line` use `cli` and `output`. `ci/layers` checks it. The other files
//! here are leaves that all may use: errors and exit statuses, IDs, sizes, time, escaping.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod cli;
pub mod command_line;
pub mod commands;
pub mod cri;
pub mod device_path;
mod diagnostics;
pub mod disk_geometry;
pub mod error;
pub mod exit_status;
mod fault;
pub mod format;
pub mod fs_group;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod guest_holder;
pub mod host;
pub mod inherited;
pub mod kata;
pub mod left_behind;
pub mod ops;
pub mod output;
mod path_text;
pub mod pod;
pub mod qemu;
#[cfg(test)]
mod sample;
pub mod sanitize;
pub mod size;
pub mod stopwatch;
pub mod volume_id;
pub mod wrapper;

pub use block_volume_qmp::Deadline;
pub use error::Error;
