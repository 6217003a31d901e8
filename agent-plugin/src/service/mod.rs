//! The ttrpc service: decodes a request, asks the agent, hands the work to a thread, encodes the
//! reply. Makes no system call on a volume itself.
//!
//! | module | does |
//! |---|---|
//! | `operation` | what the rpcs have in common: prepare, run on a thread, reply, audit |
//! | `probe`, `attach`, `detach`, `inspect`, `resize` | one rpc each |
//! | `at_work` | how many requests work at a time |
//! | `request` | checks a message against the limits of the API, and decodes it |
//! | `reply` | encodes results |
//! | `policy` | a request as the agent's policy sees it |
//! | `audit` | one log line per request |
//! | `listener` | connections on a vsock port |

mod at_work;
mod attach;
mod audit;
mod detach;
mod inspect;
mod listener;
mod operation;
pub(crate) mod policy;
mod probe;
pub(crate) mod reply;
pub(crate) mod request;
mod resize;

use std::{collections::HashMap, io, sync::Arc};

use async_trait::async_trait;
use tokio_vsock::VsockListener;
use ttrpc::r#async::{Server, Service, TtrpcContext};

use crate::{
    agent::{Agent, ContainerError},
    api::{block_volume as wire, block_volume_ttrpc as rpc},
    error::{Error, Result},
    fault,
    namespace::Target,
    volume::Queues,
};

use at_work::AtWork;

pub use listener::incoming;

/// The service, for an agent's own ttrpc server (`Server::register_service`).
pub fn service(agent: Arc<impl Agent>) -> HashMap<String, Service> {
    fault::announce();
    rpc::create_block_volume(Arc::new(BlockVolume::of(agent)))
}

/// Serves on a listener of the plugin's own, for agents whose ttrpc differs from ours. Runs until
/// it is dropped. Only the host is served: a connection from inside the guest, as a container might
/// open one, is refused by its
/// [context id](https://man7.org/linux/man-pages/man7/vsock.7.html).
///
/// # Errors
/// The server does not start.
pub async fn serve(agent: Arc<impl Agent>, listener: VsockListener) -> io::Result<()> {
    let mut server = Server::new()
        .add_listener(listener::incoming_from_host(listener)?)
        .register_service(service(agent));
    server.start().await.map_err(io::Error::other)?;
    std::future::pending().await
}

struct BlockVolume<A> {
    agent: Arc<A>,
    queues: Arc<Queues>,
    at_work: AtWork,
}

impl<A: Agent> BlockVolume<A> {
    fn of(agent: Arc<A>) -> BlockVolume<A> {
        BlockVolume { agent, queues: Arc::default(), at_work: AtWork::default() }
    }

    /// The running container `id`, or the same one as before: a request for many volumes has one
    /// set of handles for each container.
    async fn target_of(&self, id: &str, known: &mut HashMap<String, Target>) -> Result<Target> {
        if let Some(target) = known.get(id) {
            return Ok(target.clone());
        }
        let target = self.target(id).await?;
        known.insert(id.to_owned(), target.clone());
        Ok(target)
    }

    /// What remains of the stopped container `id`, if the agent hands it over.
    async fn remains_of(&self, id: &str, known: &mut HashMap<String, Target>) -> Option<Target> {
        let container = self.agent.remains(id).await?;
        let target = Target { id: id.into(), container: Arc::new(container) };
        known.insert(id.to_owned(), target.clone());
        Some(target)
    }

    /// The running container `id`.
    async fn target(&self, id: &str) -> Result<Target> {
        let target = self.target_or_why(id).await;
        target.map_err(|source| Error::Container { id: id.to_owned(), source })
    }

    /// The running container `id`, or what the agent says of it.
    async fn target_or_why(&self, id: &str) -> Result<Target, ContainerError> {
        let container = self.agent.container(id).await?;
        Ok(Target { id: id.into(), container: Arc::new(container) })
    }
}

#[async_trait]
impl<A: Agent> rpc::BlockVolume for BlockVolume<A> {
    async fn probe(
        &self,
        context: &TtrpcContext,
        request: wire::ProbeRequest,
    ) -> ttrpc::Result<wire::ProbeResponse> {
        Ok(operation::serve::<probe::Probe, A>(self, context, &request).await)
    }

    async fn attach(
        &self,
        context: &TtrpcContext,
        request: wire::AttachRequest,
    ) -> ttrpc::Result<wire::AttachResponse> {
        Ok(operation::serve::<attach::Attach, A>(self, context, &request).await)
    }

    async fn detach(
        &self,
        context: &TtrpcContext,
        request: wire::DetachRequest,
    ) -> ttrpc::Result<wire::DetachResponse> {
        Ok(operation::serve::<detach::Detach, A>(self, context, &request).await)
    }

    async fn inspect(
        &self,
        context: &TtrpcContext,
        request: wire::InspectRequest,
    ) -> ttrpc::Result<wire::InspectResponse> {
        Ok(operation::serve::<inspect::Inspect, A>(self, context, &request).await)
    }

    async fn resize(
        &self,
        context: &TtrpcContext,
        request: wire::ResizeRequest,
    ) -> ttrpc::Result<wire::ResizeResponse> {
        Ok(operation::serve::<resize::Resize, A>(self, context, &request).await)
    }
}
