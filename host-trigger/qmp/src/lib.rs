//! A client of QEMU's monitor, [QMP](https://www.qemu.org/docs/master/interop/qmp-spec.html), with
//! the messages of [qapi](https://docs.rs/qapi). It has what a tool needs that shares QEMU with a
//! runtime:
//!
//! - A monitor socket serves one client. A second one can connect, but never gets a greeting. The
//!   greeting has a deadline, and [`QmpError::Held`] is reported only if another connected client
//!   was seen.
//! - Commands that need no reply in between are sent together ([`Qmp::send_all`]), with their
//!   descriptors.
//! - A command that is interrupted, by its deadline or because its future is dropped, ends the use
//!   of the connection: each later command fails with [`QmpError::Disconnected`], and the caller
//!   connects again and reads QEMU's state anew. QEMU may have executed it, and those after it.
//! - QEMU may send the reply to a client that has gone to the next client, ahead of its greeting
//!   (seen with 10.0 after a client was killed). Therefore each command has an ID.
//! - A hostile QEMU can send any number of events, of any length, and lists that are many times as
//!   long in memory as on the wire. Each line, each event and what is parsed of a list have bounds.
//!
//! | module | contents |
//! |---|---|
//! | `client` | one connection: greeting, commands, descriptors, events |
//! | [`Command`], [`Replies`] | what is sent, and what QEMU replied |
//! | `wire` | lines: IDs, messages with descriptors, events, bounds |
//! | [`Trust`], [`Untrusted`] | whose directories, files and servers are trusted |
//! | `socket_peers` | whether another client holds the socket |
//! | [`unix_socket`] | connecting by a path of any length |
//! | `deadline` | the end of a wait |

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod client;
mod command;
mod deadline;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod peer;
mod replies;
mod socket_peers;
mod trust;
pub mod unix_socket;
mod wire;

pub use client::{COMMAND_TIMEOUT, GREETING_TIMEOUT, PassedFd, Qmp};
pub use command::Command;
pub use deadline::{Deadline, Elapsed};
pub use error::QmpError;
pub use peer::Server;
pub use replies::Replies;
pub use trust::{Located, PathError, Trust, Untrusted};
pub use wire::Event;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
