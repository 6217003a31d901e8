//! The ttrpc service: decodes a request, asks the agent, hands the work to a thread, encodes the answer.

use std::{collections::HashMap, io, sync::Arc};

use async_trait::async_trait;
use tokio_vsock::VsockListener;
use ttrpc::r#async::{Server, Service, TtrpcContext, transport::Listener};

use crate::{
    agent::Agent,
    contract::{block_volume as wire, block_volume_ttrpc as rpc},
};

/// The service's entry for an agent's own ttrpc server (`Server::register_service`).
pub fn service(agent: Arc<impl Agent>) -> HashMap<String, Service> {
    rpc::create_block_volume(Arc::new(BlockVolume { _agent: agent }))
}

/// Serves on a listener of the plugin's own, for agents whose ttrpc differs from ours. Runs until it is dropped.
///
/// # Errors
/// The server does not start.
pub async fn serve(agent: Arc<impl Agent>, listener: VsockListener) -> io::Result<()> {
    let mut server = Server::new().add_listener(Listener::from(listener)).register_service(service(agent));
    server.start().await.map_err(io::Error::other)?;
    std::future::pending().await
}

struct BlockVolume<A> {
    _agent: Arc<A>,
}

#[async_trait]
impl<A: Agent> rpc::BlockVolume for BlockVolume<A> {
    async fn resize(&self, _: &TtrpcContext, _: wire::ResizeRequest) -> ttrpc::Result<wire::ResizeResponse> {
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
            ttrpc::Code::UNIMPLEMENTED,
            "this version of the plugin cannot resize",
        )))
    }
}
