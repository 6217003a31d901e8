//! The lines of QMP below qapi. Each command gets an ID, and the lines that QEMU sends are filtered
//! before qapi reads them.

mod command_writer;
mod reply_reader;

pub(crate) use command_writer::{CommandIds, CommandWriter};
pub use reply_reader::Event;
pub(crate) use reply_reader::{ListReply, MAX_EVENTS, ReplyReader};
