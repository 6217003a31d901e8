//! The host's side of a block volume hot-plug: it hands a host block volume to the QEMU of a
//! running Kata Containers sandbox and asks the agent in the guest to make it usable in a running
//! container.
//!
//! It keeps no state of its own (QEMU does, see [`registry`]), runs no daemon, and knows nothing of
//! the guest but the contract `blockvolume.v1`. The binary `ecr-runtime` is this library behind
//! [`run`].
//!
//! | file | knows |
//! |---|---|
//! | [`cli`], [`run`] | flags and verbs, and the way from one to the other; one file per verb: [`check`], [`hot_plug`], [`hot_unplug`], [`repair`], [`list`] with `inspect`, [`resize`], [`throttle`], [`stats`] |
//! | [`sandbox`], [`shim`] | where a Kata host keeps what belongs to a sandbox |
//! | [`source`], [`holders`], `root_disk`, `block_sysfs` | the volume on the host: opened once, vetted, and who else has it |
//! | [`qemu_bug`] | versions of QEMU that hurt, for a warning |
//! | [`qmp`], [`registry`], [`presence`], [`record`], [`controller`] | QEMU's monitor, and what it keeps for us |
//! | [`agent`], [`guest_holder`] | the agent's addresses, how to dial it, its replies; who holds a volume in the guest |
//! | [`listing`], `survey`, `choice` | volumes that are plugged: which is meant, what is known of it, how it is shown |
//! | [`limits`], [`block_stats`], `prometheus` | a volume's limits and counters, in QEMU's words and in ours |
//! | [`undo`], `removal`, `mend` | how a step, a volume, and what a killed run left is taken back or completed |
//! | [`error`], [`output`], [`repaired`], [`checked`], `table`, `size`, `audit` | what a person, a program or an auditor gets to see |

pub mod agent;
mod audit;
pub mod block_stats;
mod block_sysfs;
pub mod check;
pub mod checked;
mod choice;
pub mod cli;
pub mod controller;
mod descriptor;
mod disk;
pub mod error;
mod fault;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod guest_holder;
pub mod holders;
pub mod hot_plug;
pub mod hot_unplug;
pub mod limits;
pub mod list;
pub mod listing;
mod lock;
mod mend;
mod outcome;
pub mod output;
mod prepare;
pub mod presence;
pub mod printable;
mod prometheus;
pub mod qemu_bug;
mod reach;
pub mod record;
pub mod registry;
mod removal;
pub mod repair;
pub mod repaired;
pub mod resize;
mod root_disk;
pub mod run;
#[cfg(test)]
mod sample;
pub mod sandbox;
pub mod shim;
mod signals;
mod size;
pub mod source;
pub mod stats;
pub mod stopwatch;
mod survey;
mod table;
pub mod throttle;
pub mod undo;
pub mod volume;

pub use block_volume_qmp::Deadline;
pub use error::Error;
