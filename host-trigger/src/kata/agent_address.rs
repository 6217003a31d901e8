//! The addresses of an agent, and how to connect to them.
//!
//! Kata has three kinds: [vsock](https://man7.org/linux/man-pages/man7/vsock.7.html), a Unix
//! socket, and a
//! [hybrid](https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md) of both:
//! the client writes `CONNECT <port>` to a Unix socket and reads a line `OK …`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use block_volume_qmp::{PathError, Server, Trust};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::r#async::Client;

use crate::{Deadline, Error};

/// The maximum time for a connection to the agent.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The maximum length of the reply to `CONNECT`.
const MAX_REPLY: usize = 64;

/// Where an agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAddress {
    /// `vsock://CID:PORT`
    Vsock {
        /// The guest's context ID.
        cid: u32,
        /// The agent's port.
        port: u32,
    },
    /// `hvsock://PATH:PORT`
    Hybrid {
        /// The Unix socket of the VMM or of its vsock device.
        path: PathBuf,
        /// The agent's port in the guest.
        port: u32,
        /// Whose sockets are used.
        trust: Trust,
    },
    /// `unix://PATH`
    Unix {
        /// The agent's socket.
        path: PathBuf,
        /// Whose sockets are used.
        trust: Trust,
    },
}

impl AgentAddress {
    /// Uses sockets of `trusted`; otherwise only root's are used.
    #[must_use]
    pub fn trusting(mut self, trusted: &Trust) -> Self {
        match &mut self {
            Self::Hybrid { trust, .. } | Self::Unix { trust, .. } => trust.clone_from(trusted),
            Self::Vsock { .. } => {}
        }
        self
    }
}

impl FromStr for AgentAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::AgentAddress { address: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<AgentAddress> {
    let (scheme, rest) = text.split_once("://")?;
    let path = |path: &str| path.starts_with('/').then(|| PathBuf::from(path));
    match scheme {
        "vsock" => {
            let (cid, port) = rest.split_once(':')?;
            Some(AgentAddress::Vsock { cid: cid.parse().ok()?, port: port.parse().ok()? })
        }
        "hvsock" => {
            let (socket, port) = rest.rsplit_once(':')?;
            let (path, port, trust) = (path(socket)?, port.parse().ok()?, Trust::root());
            Some(AgentAddress::Hybrid { path, port, trust })
        }
        "unix" => Some(AgentAddress::Unix { path: path(rest)?, trust: Trust::root() }),
        _ => None,
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Hybrid { path, port, .. } => write!(f, "hvsock://{}:{port}", path.display()),
            Self::Unix { path, .. } => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Connects to the agent at `address`, within [`CONNECT_TIMEOUT`] and by `deadline`.
///
/// # Errors
/// Nothing listens there, or nothing responds in time, or the path to the socket or its server is
/// not trusted.
pub async fn dial(address: &AgentAddress, deadline: Deadline) -> Result<Client, Error> {
    let connect = async {
        match address {
            AgentAddress::Vsock { cid, port } => {
                let stream = VsockStream::connect(VsockAddr::new(*cid, *port)).await?;
                Ok(Client::new(stream.into()))
            }
            AgentAddress::Hybrid { path, port, trust } => {
                let mut stream = connect_trusted(path, trust).await?;
                connect_port(&mut stream, *port).await?;
                Ok(Client::new(stream.into()))
            }
            AgentAddress::Unix { path, trust } => {
                Ok(Client::new(connect_trusted(path, trust).await?.into()))
            }
        }
    };
    match deadline.capped(CONNECT_TIMEOUT).wait(connect).await {
        Ok(Err(PathError::Untrusted(why))) => Err(why.into()),
        Ok(Err(PathError::Io(source))) if source.kind() == io::ErrorKind::PermissionDenied => {
            Err(Error::Denied { call: "connect", path: address.to_string().into(), source })
        }
        Ok(Err(PathError::Io(source))) => {
            Err(Error::AgentUnreachable { address: address.to_string(), source })
        }
        Ok(Ok(client)) => Ok(client),
        Err(_) => Err(Error::AgentNotResponding { address: address.to_string() }),
    }
}

/// Connects to a socket of Kata's, of the VMM's device or of the container engine.
pub(crate) async fn connect_trusted(path: &Path, trust: &Trust) -> Result<UnixStream, PathError> {
    let stream = trust.locate(path)?.connect().await?;
    Server::Runtime.check(&stream, path, trust)?;
    Ok(stream)
}

/// Asks the multiplexer for `port`. The reply is read byte by byte: what follows it is sent by the
/// agent.
async fn connect_port(stream: &mut UnixStream, port: u32) -> io::Result<()> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut reply = Vec::with_capacity(MAX_REPLY);
    while reply.len() < MAX_REPLY {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => reply.push(byte),
        }
    }
    if reply.starts_with(b"OK") { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    fn addresses_are_parsed_and_formatted_alike(
        #[values(
            "vsock://3:1024",
            "hvsock:///run/vc/vm/s1/vm.vsock:1024",
            "unix:///run/agent.sock",
            "hvsock:///a:b:5"
        )]
        text: &str,
    ) {
        assert_eq!(text.parse::<AgentAddress>().unwrap().to_string(), text);
    }

    #[rstest]
    fn invalid_addresses_are_refused(
        #[values(
            "",
            "vsock://3",
            "vsock://x:1",
            "vsock://3:-1",
            "hvsock://rel:1",
            "hvsock:///a",
            "unix://a",
            "tcp://a:1"
        )]
        text: &str,
    ) {
        assert!(matches!(text.parse::<AgentAddress>(), Err(Error::AgentAddress { .. })));
    }

    async fn muxer(answer: &'static [u8]) -> (tempfile::TempDir, AgentAddress) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.vsock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
            // The connection stays open: only a deadline ends the wait for more bytes.
            std::future::pending::<()>().await;
        });
        (directory, AgentAddress::Hybrid { path, port: 1024, trust: Trust::root() })
    }

    #[tokio::test]
    async fn a_hybrid_address_is_connected_through_its_multiplexer() {
        let (_directory, address) = muxer(b"OK 1073741824\n").await;
        assert!(dial(&address, Deadline::after(Duration::from_secs(2))).await.is_ok());
    }

    #[tokio::test]
    async fn a_socket_with_a_path_beyond_the_limit_of_an_address_is_reached() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let directory = std::fs::File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/s", std::os::fd::AsRawFd::as_raw_fd(&directory));
        let _listener = tokio::net::UnixListener::bind(short).unwrap();
        let address = AgentAddress::Unix { path: deep.join("s"), trust: Trust::root() };
        assert!(dial(&address, Deadline::after(Duration::from_secs(2))).await.is_ok());
    }

    #[tokio::test]
    async fn a_multiplexer_that_refuses_is_unreachable() {
        let (_directory, address) = muxer(b"Failed\n").await;
        let dialled = dial(&address, Deadline::after(Duration::from_secs(2))).await;
        assert!(matches!(dialled, Err(Error::AgentUnreachable { .. })));
    }

    #[tokio::test]
    async fn a_socket_in_a_directory_that_others_can_write_is_not_used() {
        let (directory, address) = muxer(b"OK 1073741824\n").await;
        let others = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(directory.path(), others).unwrap();
        let dialled = dial(&address, Deadline::after(Duration::from_secs(2))).await;
        assert!(matches!(dialled, Err(Error::Untrusted(_))));
    }

    #[tokio::test]
    async fn a_silent_multiplexer_has_a_deadline() {
        let (_directory, address) = muxer(b"OK").await;
        let dialled = dial(&address, Deadline::after(Duration::from_millis(50))).await;
        assert!(matches!(dialled, Err(Error::AgentNotResponding { .. })));
    }
}
