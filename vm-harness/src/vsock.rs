//! The vsock device's back end on a host without `/dev/vhost-vsock`: vhost-device-vsock, and its hybrid socket.
//!
//! A client connects to the Unix socket, writes `CONNECT <port>\n` and reads `OK <port>\n`; then the stream is the guest's.

use std::{path::Path, process::Command, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::{Environment, Error, Process};

/// Starts the back end; returns when QEMU can connect to `vhost`.
pub(crate) async fn start(
    environment: &Environment,
    cid: u32,
    vhost: &Path,
    hybrid: &Path,
    stderr: &Path,
) -> Result<Process, Error> {
    let mut command = Command::new(environment.vhost_device_vsock()?);
    command.args(["--guest-cid", &cid.to_string(), "--socket"]).arg(vhost).arg("--uds-path").arg(hybrid);
    let process = Process::start("vhost-device-vsock", command, stderr)?;
    let limit = Duration::from_secs(10);
    let listening = async {
        // The socket file appears when the back end listens, and nothing announces that.
        while !vhost.exists() && process.status().is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(limit, listening).await.is_ok();
    match process.status() {
        None if in_time => Ok(process),
        None => Err(Error::TimedOut {
            awaited: format!("the socket {} of vhost-device-vsock", vhost.display()),
            limit,
            report: process.stderr(),
        }),
        Some(status) => Err(Error::Ended {
            program: process.program(),
            status: status.to_string(),
            awaited: "its socket".to_owned(),
            report: format!("{}\n{}", process.stderr(), process.command()),
        }),
    }
}

/// Connects to `port` of the guest.
pub(crate) async fn connect(hybrid: &Path, port: u32) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(hybrid).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    // Byte by byte: what follows the line belongs to the stream's user.
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
