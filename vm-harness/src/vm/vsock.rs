//! The back end of the vsock device, which needs no `/dev/vhost-vsock`: vhost-device-vsock and its
//! hybrid socket.
//!
//! A client connects to the Unix socket, writes `CONNECT <port>\n` and reads `OK <port>\n`. After
//! that the stream leads to the guest.

use std::{path::Path, process::Command};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::{Environment, Error, Process, process::start_server};

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

/// Connects to a port of the guest.
pub(crate) async fn connect(hybrid: &Path, port: u32) -> std::io::Result<UnixStream> {
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
        Err(std::io::Error::new(
            std::io::ErrorKind::ConnectionRefused,
            String::from_utf8_lossy(&line).into_owned(),
        ))
    }
}
