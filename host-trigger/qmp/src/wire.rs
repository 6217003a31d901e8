//! The lines of QMP below qapi. Each command gets an ID, and the lines that QEMU sends are filtered
//! before qapi reads them.

mod command_writer;
mod event;
mod reply_reader;
mod weight;

pub(crate) use command_writer::{CommandIds, CommandWriter};
pub use event::Event;
#[cfg(feature = "fuzz")]
pub(crate) use event::KEPT;
pub(crate) use event::MAX_EVENTS;
pub(crate) use reply_reader::{ListReply, ReplyReader};
pub(crate) use weight::weight;
