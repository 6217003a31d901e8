//! A client of QEMU's monitor, [QMP](https://www.qemu.org/docs/master/interop/qmp-spec.html), on
//! top of [qapi](https://docs.rs/qapi). It adds what a tool needs that shares QEMU with a runtime:
//!
//! - A monitor socket serves one client. A second one can connect, but never gets a greeting. The
//!   greeting has a deadline, and [`QmpError::Held`] is reported only if another connected client
//!   was seen.
//! - qapi 0.15 closes the connection when it reads an event that it does not know.
//!   `wire::ReplyReader` removes every event before qapi reads the line.
//! - A command that is interrupted, by its deadline or because its future is dropped, makes the
//!   next one panic in qapi ("QAPI duplicate command id"). An interrupted command therefore ends
//!   the use of the connection: each later command fails with [`QmpError::Disconnected`], and the
//!   caller connects again and reads QEMU's state anew.
//! - QEMU may send the reply to a client that has gone to the next client, ahead of its greeting
//!   (seen with 10.0 after a client was killed), and qapi 0.15 sends no command IDs.
//!   `wire::CommandWriter` adds IDs and `wire::ReplyReader` checks them.
//! - qapi parses a reply several times. `wire::ReplyReader` keeps lists from it, as they can be
//!   long.
//! - A hostile QEMU can send any number of events, of any length, and lists that are many times as
//!   long in memory as on the wire. Each line, each event and what is parsed of a list have bounds.
//! - qapi cannot send a descriptor. It is sent with a single newline ahead of its command.
//!
//! | module | contents |
//! |---|---|
//! | `client` | one connection: greeting, commands, descriptors, events |
//! | `commands` | the names of the commands that are used |
//! | `wire` | lines below qapi: IDs, events, lists |
//! | [`Trust`], [`Untrusted`] | whose directories, files and servers are trusted |
//! | `socket_peers` | whether another client holds the socket |
//! | [`unix_socket`] | connecting by a path of any length |
//! | `deadline` | the end of a wait |

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod client;
mod commands;
mod deadline;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod peer;
mod socket_peers;
mod trust;
pub mod unix_socket;
mod wire;

pub use client::{COMMAND_TIMEOUT, GREETING_TIMEOUT, PassedFd, Qmp};
pub use deadline::{Deadline, Elapsed};
pub use error::QmpError;
pub use peer::Server;
pub use trust::{Located, PathError, Trust, Untrusted};
pub use wire::Event;
