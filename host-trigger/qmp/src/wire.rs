//! The lines of QMP: what is sent, and what arrives.

mod event;
mod inbox;
mod outbox;
mod weight;

pub use event::Event;
#[cfg(feature = "fuzz")]
pub(crate) use event::KEPT;
#[cfg(feature = "fuzz")]
pub(crate) use event::MAX_EVENTS;
pub(crate) use inbox::Inbox;
pub(crate) use outbox::Outbox;
pub(crate) use weight::weight;
