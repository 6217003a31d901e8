//! The ttrpc service: decodes a request, asks the agent, hands the work to a thread, encodes the
//! reply. Makes no system call on a volume itself.
//!
//! | module | does |
//! |---|---|
//! | `rpc` | the methods |
//! | `operation` | what they have in common: check, ask, run on a thread, reply, audit |
//! | `probe`, `attach`, `detach`, `inspect`, `resize` | one method each; Plug is an attach, Unplug a detach |
//! | `conversations` | the streams under way, and their Holds |
//! | `at_work` | how many requests work at a time |
//! | `message` | protobuf's wire format |
//! | `requested` | decodes a request |
//! | `request`, `field` | checks it against the limits of the API |
//! | `reply` | encodes results |
//! | `replies` | from the thread of a request to its caller |
//! | `policy` | a request as the agent's policy sees it |
//! | `audit` | one log line per request |
//! | `listener` | connections on a vsock port |

mod at_work;
mod attach;
mod audit;
mod conversations;
mod detach;
mod field;
mod inspect;
mod listener;
mod message;
mod mount;
mod operation;
pub(crate) mod policy;
mod probe;
mod replies;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod requested;
mod resize;
pub(crate) mod rpc;

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio_vsock::VsockListener;
use ttrpc::r#async::{MethodHandler, Server, Service, StreamHandler, StreamInner, TtrpcContext};

use crate::{
    agent::{Agent, ContainerError},
    error::{BoxedError, Error, Result},
    fault,
    namespace::Target,
    text::displayed,
    volume::Queues,
};

use at_work::AtWork;
use conversations::Conversations;
use message::Malformed;
use request::Checked;
use requested::{PlugStep, Request};
use rpc::Rpc;

pub use listener::incoming;

/// The name of the service in a call.
const SERVICE: &str = "blockvolume.v1.BlockVolume";

/// The service, for an agent's own ttrpc server (`Server::register_service`).
pub fn service(agent: Arc<impl Agent>) -> HashMap<String, Service> {
    service_of(agent)
}

/// Not generic, so that it is compiled in this crate and not in the agent.
fn service_of(agent: Arc<dyn Agent>) -> HashMap<String, Service> {
    fault::announce();
    let service = Arc::new(BlockVolume::of(agent));
    let mut methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> = HashMap::new();
    for rpc in Rpc::CALLS {
        let method = Method { rpc, service: service.clone() };
        methods.insert(rpc.name().to_owned(), Box::new(method));
    }
    let mut streams: HashMap<String, Arc<dyn StreamHandler + Send + Sync>> = HashMap::new();
    for (name, rpc) in Rpc::STREAMS {
        let method = Method { rpc, service: service.clone() };
        streams.insert(name.to_owned(), Arc::new(method));
    }
    let service = Service { methods, streams };
    let mut services = HashMap::new();
    services.insert(SERVICE.to_owned(), service);
    services
}

/// Serves on a listener of the plugin's own, for agents whose ttrpc differs from ours. Runs until
/// it is dropped. Only the host is served: a connection from inside the guest, as a container might
/// open one, is refused by its
/// [context id](https://man7.org/linux/man-pages/man7/vsock.7.html).
///
/// # Errors
/// The server does not start.
pub async fn serve(agent: Arc<impl Agent>, listener: VsockListener) -> io::Result<()> {
    serve_agent(agent, listener).await
}

async fn serve_agent(agent: Arc<dyn Agent>, listener: VsockListener) -> io::Result<()> {
    let mut server = Server::new()
        .add_listener(listener::incoming_from_host(listener)?)
        .register_service(service_of(agent));
    server.start().await.map_err(io::Error::other)?;
    std::future::pending().await
}

struct BlockVolume {
    agent: Arc<dyn Agent>,
    queues: Arc<Queues>,
    at_work: AtWork,
    conversations: Conversations,
}

/// What the agent says of a container.
#[derive(Debug, Clone)]
struct Found {
    container: Result<Target, ContainerError>,
    /// A paused container, or what remains of a stopped one, if the agent hands it over. Only for a
    /// detach.
    remains: Option<Target>,
}

impl Found {
    /// The running container `id`.
    fn running(&self, id: &str) -> Result<Target> {
        match &self.container {
            Ok(target) => Ok(target.clone()),
            Err(source) => Err(Found::error(id, source)),
        }
    }

    #[cold]
    #[inline(never)]
    fn error(id: &str, source: &ContainerError) -> BoxedError {
        BoxedError::from(Error::Container { id: id.to_owned(), source: source.clone() })
    }
}

impl BlockVolume {
    fn of(agent: Arc<dyn Agent>) -> BlockVolume {
        BlockVolume {
            agent,
            queues: Arc::default(),
            at_work: AtWork::default(),
            conversations: Conversations::default(),
        }
    }

    /// The container of each volume, or that of a probe. A request for many volumes has one set of
    /// handles for each container.
    async fn find_all(&self, rpc: Rpc, checked: &Checked) -> Vec<Found> {
        let mut ids = Vec::with_capacity(checked.volumes.len() + 1);
        if let Some(id) = &checked.container_id {
            ids.push(id.as_str());
        }
        // The containers of a disk that changes its size are not involved.
        for volume in checked.volumes.iter().filter(|_| rpc != Rpc::Resize) {
            ids.push(&*volume.attachment.container_id);
        }
        let mut found: Vec<Found> = Vec::with_capacity(ids.len());
        for (index, id) in ids.iter().enumerate() {
            let one = match ids[..index].iter().position(|earlier| earlier == id) {
                Some(earlier) => found[earlier].clone(),
                None => self.find(id, rpc == Rpc::Detach).await,
            };
            found.push(one);
        }
        found
    }

    async fn find(&self, id: &str, is_detach: bool) -> Found {
        let target = |container| Target { id: id.into(), container: Arc::new(container) };
        let container = self.agent.container(id).await.map(target);
        let remains = match container {
            Err(ContainerError::Stopped | ContainerError::Paused) if is_detach => {
                self.agent.remains(id).await.map(target)
            }
            _ => None,
        };
        Found { container, remains }
    }
}

/// A method of the service, as ttrpc calls it.
struct Method {
    rpc: Rpc,
    service: Arc<BlockVolume>,
}

#[async_trait]
impl MethodHandler for Method {
    async fn handler(
        &self,
        context: TtrpcContext,
        call: ttrpc::Request,
    ) -> ttrpc::Result<ttrpc::Response> {
        let request = decoded(self.rpc, &call.payload)?;
        let payload = if self.rpc == Rpc::Hold {
            self.service.conversations.hold(request.conversation).await;
            None
        } else {
            operation::serve(&self.service, self.rpc, &request, context.timeout_nano, None).await
        };
        Ok(response(payload))
    }
}

/// The reply to a call, or the last message of a stream.
fn response(payload: Option<Vec<u8>>) -> ttrpc::Response {
    let mut response = ttrpc::Response::new();
    response.status = Some(ttrpc::get_status(ttrpc::Code::OK, String::new())).into();
    response.payload = payload.unwrap_or_default();
    response
}

/// How long a stream may be open before its first message: the handler of a connection that is
/// closed would wait for ever.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

#[async_trait]
impl StreamHandler for Method {
    async fn handler(
        &self,
        context: TtrpcContext,
        mut stream: StreamInner,
    ) -> ttrpc::Result<Option<ttrpc::Response>> {
        let first = tokio::time::timeout(FIRST_MESSAGE, stream.recv()).await;
        let first = first.map_err(|_| ttrpc::Error::Others("no message".to_owned()))??;
        let start = match self.rpc {
            // What a Detach begins with, in no step.
            Rpc::Detach => &*first,
            _ => match PlugStep::decode(&first).map_err(undecodable)? {
                PlugStep::Start(request) => request,
                // A request for nothing is refused.
                _ => &[],
            },
        };
        let request = decoded(self.rpc, start)?;
        let (nanos, stream) = (context.timeout_nano, Some(&mut stream));
        let mut last = operation::serve(&self.service, self.rpc, &request, nanos, stream).await;
        if self.rpc == Rpc::Detach {
            last = last.map(|detached| reply::unplugged(&detached));
        }
        // The last message is the response of the stream, which also closes it: a client hands over
        // each message in a task of its own, so that a message that only closes could overtake one.
        Ok(last.map(|reply| response(Some(reply))))
    }
}

fn decoded(rpc: Rpc, bytes: &[u8]) -> ttrpc::Result<Request<'_>> {
    Request::decode(rpc, bytes).map_err(undecodable)
}

fn undecodable(malformed: Malformed) -> ttrpc::Error {
    ttrpc::Error::Others(displayed(&malformed))
}
