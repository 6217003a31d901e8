//! How the harness reaches the ports of a guest.
//!
//! Usually the back end of the vsock device is vhost-device-vsock, which needs no
//! `/dev/vhost-vsock`, and its hybrid socket: a client connects to the Unix socket, writes `CONNECT
//! <port>\n` and reads `OK <port>\n`; after that the stream leads to the guest. On a node it is the
//! kernel's own, as with Kata ([vsock(7)](https://man7.org/linux/man-pages/man7/vsock.7.html)).

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::Command,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tokio_vsock::{VsockAddr, VsockStream};

use crate::{Environment, Error, Process, process::start_server};

/// The address of a guest, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Vsock {
    /// The hybrid socket of vhost-device-vsock.
    Hybrid(PathBuf),
    /// The context ID of a guest with the kernel's vhost-vsock.
    Native(u32),
}

impl Vsock {
    /// Returns the address of a port as Kata's shim reports it.
    pub(crate) fn url(&self, port: u32) -> String {
        match self {
            Self::Hybrid(path) => format!("hvsock://{}:{port}", path.display()),
            Self::Native(cid) => format!("vsock://{cid}:{port}"),
        }
    }

    /// Connects to a port of the guest.
    pub(crate) async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        match self {
            Self::Hybrid(path) => connect(path, port).await,
            Self::Native(cid) => {
                let stream = VsockStream::connect(VsockAddr::new(*cid, port)).await?;
                let socket = stream.as_fd().try_clone_to_owned()?;
                // Reading, writing and shutting down, all that happens to it, are the same calls
                // for every family of sockets.
                UnixStream::from_std(socket.into())
            }
        }
    }
}

/// Starts the back end, and waits until QEMU can connect to `vhost`.
pub(crate) async fn start(
    environment: &Environment,
    cid: u32,
    vhost: &Path,
    hybrid: &Path,
    stderr: &Path,
) -> Result<Process, Error> {
    let mut command = Command::new(environment.vhost_device_vsock()?);
    command
        .args(["--guest-cid", &cid.to_string(), "--socket"])
        .arg(vhost)
        .arg("--uds-path")
        .arg(hybrid);
    start_server("vhost-device-vsock", command, vhost, stderr).await
}

/// Connects to a port of the guest through the hybrid socket.
async fn connect(hybrid: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(hybrid).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    // Byte by byte, because what follows the line belongs to the caller.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && line.len() < 32 {
        line.push(stream.read_u8().await?);
    }
    if line.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            String::from_utf8_lossy(&line).into_owned(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_that_a_shim_reports() {
        let hybrid = Vsock::Hybrid("/run/vc/vm/s1/vm.vsock".into());
        assert_eq!(hybrid.url(1024), "hvsock:///run/vc/vm/s1/vm.vsock:1024");
        assert_eq!(Vsock::Native(3).url(1024), "vsock://3:1024");
    }
}
