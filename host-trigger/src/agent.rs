//! The agent in the guest: its addresses, how to dial them, and the contract's calls over
//! [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md).
//!
//! Kata has three kinds of address: [vsock](https://man7.org/linux/man-pages/man7/vsock.7.html), a
//! unix socket, and the
//! [hybrid](https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md) of both,
//! where `CONNECT <port>` is written to a unix socket and answered by a line `OK …`.

use std::{fmt, io, path::PathBuf, str::FromStr, time::Duration};

use block_volume_api::{
    API_LEVEL,
    block_volume::{
        AttachRequest, AttachResponse, DetachRequest, DetachResponse, Failure, InspectRequest,
        InspectResponse, ProbeRequest, ProbeResponse, Reason, ResizeRequest, ResizeResponse,
    },
    block_volume_ttrpc::BlockVolumeClient,
};
use block_volume_qmp::unix_socket;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::{Code, r#async::Client, context::Context};

use crate::{Deadline, Error, guest_holder::GuestHolder, printable::printable};

/// The longest that a connection to the agent may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest time that the contract lets a request ask for.
pub(crate) const LONGEST_REQUEST: Duration = Duration::from_secs(600);
/// The longest answer to `CONNECT` that is read.
const LONGEST_ANSWER: usize = 64;

/// Where an agent listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentAddress {
    /// `vsock://CID:PORT`
    Vsock {
        /// The guest's context id.
        cid: u32,
        /// The agent's port.
        port: u32,
    },
    /// `hvsock://PATH:PORT`
    Hybrid {
        /// The unix socket of the VMM or of its vsock device.
        path: PathBuf,
        /// The agent's port in the guest.
        port: u32,
    },
    /// `unix://PATH`
    Unix {
        /// The agent's socket.
        path: PathBuf,
    },
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
            Some(AgentAddress::Hybrid { path: path(socket)?, port: port.parse().ok()? })
        }
        "unix" => Some(AgentAddress::Unix { path: path(rest)? }),
        _ => None,
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Hybrid { path, port } => write!(f, "hvsock://{}:{port}", path.display()),
            Self::Unix { path } => write!(f, "unix://{}", path.display()),
        }
    }
}

/// `time` as a request's `timeout_ms`, within the contract's bounds.
pub(crate) fn timeout_ms(time: Duration) -> u64 {
    // The clamped time fits.
    u64::try_from(time.clamp(Duration::from_millis(1), LONGEST_REQUEST).as_millis()).unwrap_or(1)
}

/// Connects to the agent at `address`, within [`CONNECT_TIMEOUT`] and by `deadline`.
///
/// # Errors
/// Nobody listens there, or nothing answers in time.
pub async fn dial(address: &AgentAddress, deadline: Deadline) -> Result<Client, Error> {
    let connect = async {
        match address {
            AgentAddress::Vsock { cid, port } => {
                let stream = VsockStream::connect(VsockAddr::new(*cid, *port)).await?;
                Ok(Client::new(stream.into()))
            }
            AgentAddress::Hybrid { path, port } => {
                let mut stream = unix_socket::connect(path).await?;
                open_port(&mut stream, *port).await?;
                Ok(Client::new(stream.into()))
            }
            AgentAddress::Unix { path } => {
                Ok(Client::new(unix_socket::connect(path).await?.into()))
            }
        }
    };
    match deadline.within(CONNECT_TIMEOUT).wait(connect).await {
        Ok(connected) => connected.map_err(|source: io::Error| match source.kind() {
            io::ErrorKind::PermissionDenied => {
                Error::Denied { call: "connect", path: address.to_string().into(), source }
            }
            _ => Error::AgentUnreachable { address: address.to_string(), source },
        }),
        Err(_) => Err(Error::AgentSilent { address: address.to_string() }),
    }
}

/// Asks the multiplexer for `port`. The answer is read byte by byte: what follows it is the
/// agent's.
async fn open_port(stream: &mut UnixStream, port: u32) -> io::Result<()> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(LONGEST_ANSWER);
    while answer.len() < LONGEST_ANSWER {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => answer.push(byte),
        }
    }
    if answer.starts_with(b"OK") { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
}

/// The block volume service of one agent.
#[derive(Clone)]
pub struct Agent {
    client: BlockVolumeClient,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Agent")
    }
}

/// A reply that may tell of a failure.
trait Reply {
    fn failure(&mut self) -> Option<Failure>;
}

macro_rules! reply {
    ($($kind:ty),*) => { $(impl Reply for $kind { fn failure(&mut self) -> Option<Failure> { self.failure.take() } })* };
}

reply!(ProbeResponse, AttachResponse, DetachResponse, InspectResponse, ResizeResponse);

impl Agent {
    /// The service behind `client`.
    pub fn new(client: Client) -> Self {
        Self { client: BlockVolumeClient::new(client) }
    }

    /// What the guest can do, and how the container's paths are taken.
    ///
    /// # Errors
    /// The agent has no plugin, another API level, refuses, or does not answer.
    pub async fn probe(
        &self,
        container: &str,
        paths: Vec<String>,
        deadline: Deadline,
    ) -> Result<ProbeResponse, Error> {
        let request =
            ProbeRequest { container_id: container.to_owned(), paths, ..Default::default() };
        let reply = call("Probe", deadline, |context| self.client.probe(context, &request)).await?;
        if reply.api_level != API_LEVEL {
            return Err(Error::ApiLevel { guest: reply.api_level });
        }
        accepted(reply)
    }

    /// Makes volumes usable at their paths.
    ///
    /// # Errors
    /// As the guest says, or the reply was lost: what became of the request is then unknown.
    pub async fn attach(
        &self,
        request: &AttachRequest,
        deadline: Deadline,
    ) -> Result<AttachResponse, Error> {
        accepted(call("Attach", deadline, |context| self.client.attach(context, request)).await?)
    }

    /// Takes volumes away again.
    ///
    /// # Errors
    /// As the guest says, or the reply was lost.
    pub async fn detach(
        &self,
        request: &DetachRequest,
        deadline: Deadline,
    ) -> Result<DetachResponse, Error> {
        let reply =
            call("Detach", deadline, |context| self.client.detach(context, request)).await?;
        let busy = Reason::REASON_BUSY;
        match reply
            .failure
            .as_ref()
            .filter(|failure| failure.reason == busy.into() && failure.undone)
        {
            Some(failure) if !reply.holders.is_empty() => Err(Error::InUse {
                volume: printable(&failure.serial),
                holders: GuestHolder::all(&reply.holders),
            }),
            _ => accepted(reply),
        }
    }

    /// How attachments look in the guest; changes nothing.
    ///
    /// # Errors
    /// As the guest says, or it does not answer.
    pub async fn inspect(
        &self,
        request: &InspectRequest,
        deadline: Deadline,
    ) -> Result<InspectResponse, Error> {
        accepted(call("Inspect", deadline, |context| self.client.inspect(context, request)).await?)
    }

    /// Makes the guest read the sizes of disks again.
    ///
    /// # Errors
    /// As the guest says, or the reply was lost.
    pub async fn resize(
        &self,
        request: &ResizeRequest,
        deadline: Deadline,
    ) -> Result<ResizeResponse, Error> {
        accepted(call("Resize", deadline, |context| self.client.resize(context, request)).await?)
    }
}

/// Makes one call. The wait ends here and not in ttrpc, whose client tells its own time-out only by
/// a text that differs between versions; the limit that it sends along is a little longer, so that
/// this one comes first.
async fn call<T>(
    method: &'static str,
    deadline: Deadline,
    call: impl AsyncFnOnce(Context) -> ttrpc::Result<T>,
) -> Result<T, Error> {
    let context = ttrpc::context::with_duration(deadline.remaining() + Duration::from_secs(1));
    match deadline.wait(call(context)).await {
        Ok(reply) => reply.map_err(|e| call_error(method, e)),
        Err(_) => Err(Error::AgentTimedOut { method }),
    }
}

fn accepted<T: Reply>(mut reply: T) -> Result<T, Error> {
    match reply.failure() {
        None => Ok(reply),
        Some(failure) => Err(Error::Guest {
            reason: failure.reason.enum_value().unwrap_or_default(),
            message: failure.message,
            undone: failure.undone,
        }),
    }
}

/// An agent that lacks the service answers `INVALID_ARGUMENT` ("… service does not exist", ttrpc
/// 0.9 and 0.10) or, in Go, `UNIMPLEMENTED`; one that lacks the method `NOT_FOUND` ("… is not
/// supported").
fn call_error(method: &'static str, error: ttrpc::Error) -> Error {
    match error {
        ttrpc::Error::RpcStatus(status) => match status.code() {
            Code::INVALID_ARGUMENT if status.message().contains("does not exist") => {
                Error::NoPlugin
            }
            Code::DEADLINE_EXCEEDED => Error::AgentTimedOut { method },
            Code::UNIMPLEMENTED | Code::NOT_FOUND => Error::NoMethod { method },
            code => Error::AgentStatus {
                method,
                code: format!("{code:?}"),
                message: status.message().to_owned(),
            },
        },
        _ => Error::AgentLost { method },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    fn addresses_are_read_and_written_alike(
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
    fn odd_addresses_are_refused(
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

    #[rstest]
    #[case(Duration::ZERO, 1)]
    #[case(Duration::from_millis(1500), 1500)]
    #[case(Duration::from_secs(86_400), 600_000)]
    fn a_request_asks_for_no_more_time_than_the_contract_allows(
        #[case] time: Duration,
        #[case] millis: u64,
    ) {
        assert_eq!(timeout_ms(time), millis);
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
            // Held open: only a deadline ends a wait for more.
            std::future::pending::<()>().await;
        });
        (directory, AgentAddress::Hybrid { path, port: 1024 })
    }

    #[tokio::test]
    async fn a_hybrid_address_is_dialled_through_its_multiplexer() {
        let (_directory, address) = muxer(b"OK 1073741824\n").await;
        assert!(dial(&address, Deadline::after(Duration::from_secs(2))).await.is_ok());
    }

    #[tokio::test]
    async fn a_multiplexer_that_refuses_is_unreachable() {
        let (_directory, address) = muxer(b"Failed\n").await;
        let dialled = dial(&address, Deadline::after(Duration::from_secs(2))).await;
        assert!(matches!(dialled, Err(Error::AgentUnreachable { .. })));
    }

    #[tokio::test]
    async fn a_silent_multiplexer_has_a_deadline() {
        let (_directory, address) = muxer(b"OK").await;
        let dialled = dial(&address, Deadline::after(Duration::from_millis(50))).await;
        assert!(matches!(dialled, Err(Error::AgentSilent { .. })));
    }
}
