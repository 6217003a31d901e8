//! Who serves a unix socket: the process that called `listen(2)` last
//! ([`SO_PEERCRED`](https://man7.org/linux/man-pages/man7/unix.7.html)). Neither its executable nor
//! its arguments say anything: every user can run a program of any name.

use std::{os::fd::AsFd, path::Path};

use nix::sys::socket::{getsockopt, sockopt};

use crate::{Trust, Untrusted};

/// Who must serve a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// QEMU: the process that the runtime recorded, if it did, of the VMM's user, if that is named.
    Qemu(Option<i32>),
    /// A process of Kata's, or of the VMM's device: root's, or the VMM's user's.
    Runtime,
}

impl Server {
    /// Checks who serves the other end of `stream`, which was connected by `path`.
    ///
    /// # Errors
    /// It is another process, or of another user.
    pub fn check(self, stream: impl AsFd, path: &Path, trust: &Trust) -> Result<(), Untrusted> {
        // The call fails for no socket that is connected.
        let (pid, user) = getsockopt(&stream, sockopt::PeerCredentials)
            .map_or((0, u32::MAX), |peer| (peer.pid(), peer.uid()));
        let other =
            |expected| Err(Untrusted::Server { path: path.to_owned(), pid, user, expected });
        match (self, trust.vmm_user()) {
            (Self::Qemu(Some(qemu)), _) if qemu != pid => {
                other(format!("QEMU, which is process {qemu} as the runtime recorded it"))
            }
            (Self::Qemu(_), Some(vmm)) if vmm != user => other(format!("a process of user {vmm}")),
            (Self::Runtime, Some(vmm)) if vmm != user && user != 0 => {
                other(format!("a process of root or of user {vmm}"))
            }
            _ => Ok(()),
        }
    }
}
