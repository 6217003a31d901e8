//! Access to `wire` for the fuzz targets.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::mpsc,
};

use crate::wire::{CommandIds, Event, ListReply, MAX_EVENTS, ReplyReader};

/// Whether events of this name are passed on.
pub fn is_kept(event: &str) -> bool {
    crate::wire::KEPT.contains(&event)
}

/// What the client makes of QEMU's lines.
#[derive(Debug)]
pub struct Passed {
    /// The bytes that qapi reads.
    pub bytes: Vec<u8>,
    /// The events.
    pub events: Vec<Event>,
    /// The last list that was kept from qapi.
    pub list: Option<Vec<u8>>,
}

/// Reads QEMU's lines from `socket` to its end; `last` is the ID of the last command.
///
/// # Errors
/// A line is too long.
pub async fn lines(socket: impl AsyncRead + Unpin, last: u32) -> io::Result<Passed> {
    let (sender, mut receiver) = mpsc::channel(MAX_EVENTS);
    let list_reply = ListReply::default();
    let ids = CommandIds::starting_after(last);
    let mut reader = ReplyReader::new(socket, ids, sender, list_reply.clone());
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await?;
    let events = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
    Ok(Passed { bytes, events, list: list_reply.take() })
}
