//! Connections on a [vsock(7)](https://man7.org/linux/man-pages/man7/vsock.7.html) port, without a
//! pause after each.
//!
//! Linux puts an `accept` on vsock that finds nobody waiting to sleep until the next timer tick,
//! although the descriptor does not block (seen on 6.1: `vsock_accept` calls
//! `schedule_timeout(0)`). Servers accept until nobody is left, so every connection holds up an
//! event loop for as much as 4 ms, before its first request is read. This one asks first whether
//! somebody is there.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use futures_util::stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::transport::Listener;

/// What a ttrpc server listens on, for an agent's own server. Everybody is let in, as by the
/// agent's own listener.
///
/// # Errors
/// The listener's descriptor cannot be watched. Needs a tokio runtime with its I/O driver.
pub fn incoming(listener: VsockListener) -> io::Result<Listener> {
    let door = Door::of(listener)?;
    Ok(Listener::new(stream::unfold(door, async |door| {
        let connection = door.accept().await.map(|(connection, _)| connection);
        Some((connection, door))
    })))
}

/// The same for [`serve`](crate::serve), which serves the host alone.
pub(crate) fn incoming_from_host(listener: VsockListener) -> io::Result<Listener> {
    let door = Door::of(listener)?;
    Ok(Listener::new(stream::unfold((door, 0), async |(door, mut refused)| {
        loop {
            match door.accept().await {
                Ok((connection, peer)) if peer.cid() == VMADDR_CID_HOST => {
                    // For an auditor: handlers are not told who calls, so the lines of what was
                    // done follow this one.
                    tracing::info!(cid = peer.cid(), port = peer.port(), "a caller");
                    return Some((Ok(connection), (door, refused)));
                }
                Ok((_, peer)) => {
                    refused += 1_u64;
                    // Whoever asks again and again does not fill the log.
                    if refused.is_power_of_two() {
                        tracing::warn!(
                            cid = peer.cid(),
                            refused,
                            "refused a caller that is not the host"
                        );
                    }
                }
                Err(error) => return Some((Err(error), (door, refused))),
            }
        }
    })))
}

/// A listener, and what tells that somebody is there.
struct Door {
    listener: VsockListener,
    bell: AsyncFd<OwnedFd>,
}

impl Door {
    fn of(listener: VsockListener) -> io::Result<Self> {
        // A second descriptor, as tokio watches each but once.
        let bell = watch(listener.as_fd().try_clone_to_owned()?)?;
        Ok(Self { listener, bell })
    }

    async fn accept(&self) -> io::Result<(VsockStream, VsockAddr)> {
        loop {
            let mut ready = self.bell.readable().await?;
            let mut somebody = [PollFd::new(self.bell.get_ref().as_fd(), PollFlags::POLLIN)];
            if poll(&mut somebody, PollTimeout::ZERO)? > 0 {
                return self.listener.accept().await;
            }
            // Whoever comes from now on is a new event.
            ready.clear_ready();
        }
    }
}

#[expect(
    unsafe_code,
    reason = "tokio lets a descriptor be watched only by whoever vouches that it stays open"
)]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, always the same one, and closes it only after it
    // stopped watching.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}
