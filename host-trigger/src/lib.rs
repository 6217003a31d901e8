//! The host's side of a block volume hot-plug: it hands a host block volume to the QEMU of a running Kata Containers sandbox
//! and asks the agent in the guest to make it usable in a running container.
//!
//! It keeps no state of its own (QEMU does, see [`registry`]), runs no daemon, and knows nothing of the guest but the
//! contract `blockvolume.v1`. The binary `ecr-runtime` is this library behind [`cli`].
//!
//! | file | knows |
//! |---|---|
//! | [`cli`] | flags and verbs; one file per verb: [`hot_plug`], [`hot_unplug`], [`list`] with `inspect` |
//! | [`sandbox`], [`shim`] | where a Kata host keeps what belongs to a sandbox |
//! | [`source`], [`holders`] | the volume on the host: opened once, vetted, and who else has it |
//! | [`qmp`], [`registry`], [`record`] | QEMU's monitor, and what it keeps for us |
//! | [`agent`] | the agent's addresses, how to dial it, its replies |
//! | [`listing`], `survey`, `choice` | volumes that are plugged: which is meant, what is known of it, how it is shown |
//! | [`undo`] | how everything is taken back |
//! | [`error`], [`output`] | what a person or a program gets to see |

pub mod agent;
mod choice;
pub mod cli;
pub mod deadline;
mod descriptor;
mod disk;
pub mod error;
mod fault;
pub mod holders;
pub mod hot_plug;
pub mod hot_unplug;
pub mod list;
pub mod listing;
mod lock;
pub mod output;
mod prepare;
mod printable;
pub mod qmp;
mod reach;
pub mod record;
pub mod registry;
pub mod sandbox;
pub mod shim;
mod signals;
mod socket_peers;
pub mod source;
mod survey;
pub mod undo;
mod unix_socket;
pub mod volume;

pub use deadline::Deadline;
pub use error::Error;
