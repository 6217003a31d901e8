//! Connections on a [vsock(7)](https://man7.org/linux/man-pages/man7/vsock.7.html) port, without a pause after each.
//!
//! Linux puts an `accept` on vsock that finds nobody waiting to sleep until the next timer tick, although the descriptor does not
//! block (seen on 6.1: `vsock_accept` calls `schedule_timeout(0)`). Servers accept until nobody is left, so every connection holds
//! up an event loop for as much as 4 ms, before its first request is read. This one asks first whether somebody is there.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use futures_util::stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_vsock::{VsockListener, VsockStream};
use ttrpc::r#async::transport::Listener;

/// What a ttrpc server listens on, for [`serve`](crate::serve) and for an agent's own server.
///
/// # Errors
/// The listener's descriptor cannot be watched. Needs a tokio runtime with its I/O driver.
pub fn incoming(listener: VsockListener) -> io::Result<Listener> {
    // A second descriptor, as tokio watches each but once.
    let doorbell = watch(listener.as_fd().try_clone_to_owned()?)?;
    Ok(Listener::new(stream::unfold((listener, doorbell), async |(listener, doorbell)| {
        let connection = accept(&listener, &doorbell).await;
        Some((connection, (listener, doorbell)))
    })))
}

#[expect(
    unsafe_code,
    reason = "tokio lets a descriptor be watched only by whoever vouches that it stays open"
)]
fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, always the same one, and closes it only after it stopped watching.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

async fn accept(
    listener: &VsockListener,
    doorbell: &AsyncFd<std::os::fd::OwnedFd>,
) -> io::Result<VsockStream> {
    loop {
        let mut ready = doorbell.readable().await?;
        let mut somebody = [PollFd::new(doorbell.get_ref().as_fd(), PollFlags::POLLIN)];
        if poll(&mut somebody, PollTimeout::ZERO)? > 0 {
            return listener.accept().await.map(|(connection, _)| connection);
        }
        // Whoever comes from now on is a new event.
        ready.clear_ready();
    }
}
