//! The sending side: qapi's commands, with an
//! [ID](https://www.qemu.org/docs/master/interop/qmp-spec.html) each.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, net::unix::OwnedWriteHalf};

/// The ID of the last command that was sent. Both directions of a connection share it.
#[derive(Debug, Clone)]
pub(crate) struct CommandIds {
    last: Arc<AtomicU32>,
}

impl CommandIds {
    pub(crate) fn new() -> Self {
        // Random, so that it differs from the IDs of an earlier client. Short, because QEMU reads
        // byte by byte.
        Self::starting_after(fastrand::u32(10_000..100_000))
    }

    pub(crate) fn starting_after(last: u32) -> Self {
        Self { last: Arc::new(AtomicU32::new(last)) }
    }

    pub(crate) fn last(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    fn next(&self) -> u32 {
        self.last.fetch_add(1, Ordering::Relaxed);
        self.last()
    }
}

/// Writes qapi's commands and adds an ID to each.
#[derive(Debug)]
pub(crate) struct CommandWriter {
    socket: OwnedWriteHalf,
    ids: CommandIds,
    at_line_start: bool,
    pending: VecDeque<u8>,
}

impl CommandWriter {
    pub(crate) fn new(socket: OwnedWriteHalf, ids: CommandIds) -> Self {
        Self { socket, ids, at_line_start: true, pending: VecDeque::new() }
    }
}

impl AsyncWrite for CommandWriter {
    /// Only buffers the bytes; qapi flushes after each command.
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        for &byte in bytes {
            self.pending.push_back(byte);
            if self.at_line_start && byte == b'{' {
                let id = format!("\"id\":{},", self.ids.next());
                self.pending.extend(id.as_bytes());
            }
            self.at_line_start = byte == b'\n';
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while !this.pending.is_empty() {
            let written =
                ready!(Pin::new(&mut this.socket).poll_write(cx, this.pending.make_contiguous()))?;
            this.pending.drain(..written);
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
