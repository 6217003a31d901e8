//! Connections on a [vsock(7)](https://man7.org/linux/man-pages/man7/vsock.7.html) port, without a
//! pause after each.
//!
//! An `accept` on a vsock listener without a pending connection sleeps until the next timer tick,
//! although the descriptor is non-blocking (Linux 6.1: `vsock_accept` calls `schedule_timeout(0)`).
//! Servers accept until no connection is pending, so every connection delays the event loop for up
//! to 4 ms, before its first request is read. This listener polls first whether a connection is
//! pending.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use futures_util::stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::transport::Listener;

/// A listener for an agent's own ttrpc server. Every peer is accepted, as by the agent's own
/// listener.
///
/// # Errors
/// The listener's descriptor cannot be watched. Needs a tokio runtime with its I/O driver.
pub fn incoming(listener: VsockListener) -> io::Result<Listener> {
    let listener = PolledListener::of(listener)?;
    Ok(Listener::new(stream::unfold(listener, async |listener| {
        let connection = listener.accept().await.map(|(connection, _)| connection);
        Some((connection, listener))
    })))
}

/// A listener for [`serve`](crate::serve) that accepts the host alone.
pub(crate) fn incoming_from_host(listener: VsockListener) -> io::Result<Listener> {
    let listener = PolledListener::of(listener)?;
    Ok(Listener::new(stream::unfold((listener, 0), async |(listener, mut refused)| {
        loop {
            match listener.accept().await {
                Ok((connection, peer)) if peer.cid() == VMADDR_CID_HOST => {
                    // For the audit: handlers do not see the peer, so the lines about requests
                    // follow this one.
                    tracing::info!(cid = peer.cid(), port = peer.port(), "a caller");
                    return Some((Ok(connection), (listener, refused)));
                }
                Ok((_, peer)) => {
                    refused += 1_u64;
                    // A peer that connects again and again does not fill the log.
                    if refused.is_power_of_two() {
                        tracing::warn!(
                            cid = peer.cid(),
                            refused,
                            "refused a caller that is not the host"
                        );
                    }
                }
                Err(error) => return Some((Err(error), (listener, refused))),
            }
        }
    })))
}

/// A listener, and a second descriptor of it for readiness.
struct PolledListener {
    listener: VsockListener,
    readiness: AsyncFd<OwnedFd>,
}

impl PolledListener {
    fn of(listener: VsockListener) -> io::Result<Self> {
        // tokio watches a descriptor only once.
        let readiness = watch(listener.as_fd().try_clone_to_owned()?)?;
        Ok(Self { listener, readiness })
    }

    async fn accept(&self) -> io::Result<(VsockStream, VsockAddr)> {
        loop {
            let mut ready = self.readiness.readable().await?;
            let mut pending = [PollFd::new(self.readiness.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut pending, PollTimeout::ZERO)? > 0 {
                return self.listener.accept().await;
            }
            // A connection from now on is a new event.
            ready.clear_ready();
        }
    }
}

// What replaces this function is in tokio 1.54 only, and Kata's agents have older ones.
#[allow(clippy::allow_attributes, deprecated, reason = "an owned descriptor is always the same")]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}
