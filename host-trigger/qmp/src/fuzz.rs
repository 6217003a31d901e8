//! The door to `wire`, for the fuzz targets.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::mpsc,
};

use crate::wire::{EVENTS, Event, Lines, List, Numbers};

/// What is made of QEMU's lines.
#[derive(Debug)]
pub struct Passed {
    /// What qapi gets.
    pub bytes: Vec<u8>,
    /// What was told unasked.
    pub events: Vec<Event>,
    /// The last list that was kept from qapi.
    pub list: Option<Vec<u8>>,
}

/// Takes QEMU's lines from `socket` to its end; the last command had the number `last`.
///
/// # Errors
/// A line without an end.
pub async fn lines(socket: impl AsyncRead + Unpin, last: u32) -> io::Result<Passed> {
    let (sender, mut receiver) = mpsc::channel(EVENTS);
    let list = List::default();
    let mut lines = Lines::new(socket, Numbers::at(last), sender, list.clone());
    let mut bytes = Vec::new();
    lines.read_to_end(&mut bytes).await?;
    let events = std::iter::from_fn(|| receiver.try_recv().ok()).collect();
    Ok(Passed { bytes, events, list: list.take() })
}
