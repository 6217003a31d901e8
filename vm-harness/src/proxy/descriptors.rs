//! Sends and receives bytes with descriptors
//! ([`SCM_RIGHTS`](https://man7.org/linux/man-pages/man7/unix.7.html)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Waits for bytes, and returns their number and the descriptors; 0 is the end of the stream.
pub(super) fn receive(from: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 8]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            descriptors.extend(received.into_iter().map(owned));
        }
    }
    Ok((message.bytes, descriptors))
}

#[expect(unsafe_code, reason = "nix returns received descriptors as numbers")]
fn owned(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for this process, and it has no other owner.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Sends all bytes, and the descriptors with the first of them.
pub(super) fn send(to: &UnixStream, mut bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let mut control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    while !bytes.is_empty() {
        let sent = sendmsg::<()>(
            to.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        bytes = &bytes[sent..];
        control = &[];
    }
    Ok(())
}
