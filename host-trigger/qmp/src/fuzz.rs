//! Access to `wire` for the fuzz targets.

use std::io;

use crate::wire::{Event, Inbox};

/// The number of events that are kept; later ones are dropped.
pub const MAX_EVENTS: usize = crate::wire::MAX_EVENTS;

/// Whether events of this name are passed on.
pub fn is_kept(event: &str) -> bool {
    crate::wire::KEPT.contains(&event)
}

/// What the client makes of QEMU's lines.
#[derive(Debug)]
pub struct Passed {
    /// The greeting.
    pub greeting: Option<Vec<u8>>,
    /// The replies that were awaited.
    pub replies: Vec<Vec<u8>>,
    /// The events.
    pub events: Vec<Event>,
}

/// Takes the pieces of what QEMU sends while the replies to `count` commands are awaited, of which
/// `first` is the ID of the first one.
///
/// # Errors
/// A list is too long.
pub fn lines(pieces: &[&[u8]], first: u32, count: usize) -> io::Result<Passed> {
    let mut inbox = Inbox::new(first);
    inbox.expect(count);
    pieces.iter().try_for_each(|piece| inbox.take_bytes(piece))?;
    let events = std::iter::from_fn(|| inbox.take_event()).collect();
    let replies = inbox.take_replies(count).into();
    Ok(Passed { greeting: inbox.take_greeting(), replies, events })
}
