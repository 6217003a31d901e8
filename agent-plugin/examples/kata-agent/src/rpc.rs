//! The stub's `rpc.rs`: the agent's server with the agent's own service (only one of its methods)
//! and the plugin's service.

use std::sync::Arc;

use agent_api::agent::{AgentDetails, GuestDetailsRequest, GuestDetailsResponse};
use agent_api::agent_ttrpc::{create_agent_service, AgentService as AgentServiceMethods};
use async_trait::async_trait;
use tokio::sync::Mutex;
use ttrpc::r#async::{Server as TtrpcServer, TtrpcContext};

use crate::features::get_build_features;
use crate::sandbox::Sandbox;

struct AgentService {
    #[allow(
        dead_code,
        clippy::allow_attributes,
        reason = "kata-agent's methods use it, and the stub has none of them"
    )]
    sandbox: Arc<Mutex<Sandbox>>,
}

#[async_trait]
impl AgentServiceMethods for AgentService {
    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        _: GuestDetailsRequest,
    ) -> ttrpc::Result<GuestDetailsResponse> {
        let details =
            AgentDetails { extra_features: get_build_features(), ..AgentDetails::default() };
        Ok(GuestDetailsResponse {
            agent_details: Some(details).into(),
            ..GuestDetailsResponse::default()
        })
    }
}

/// Binds the agent's server; the caller starts it.
pub(crate) fn start(s: Arc<Mutex<Sandbox>>, server_address: &str) -> ttrpc::Result<TtrpcServer> {
    #[cfg(feature = "block-volume")]
    let block_volume = crate::block_volume::service(s.clone());
    let agent_service = AgentService { sandbox: s };
    let aservice = create_agent_service(Arc::new(agent_service));

    let server = bind(server_address)?.register_service(aservice);
    #[cfg(feature = "block-volume")]
    let server = server.register_service(block_volume);
    Ok(server)
}

#[cfg(feature = "block-volume")]
use crate::no_pause::bind;

#[cfg(not(feature = "block-volume"))]
fn bind(address: &str) -> ttrpc::Result<TtrpcServer> {
    TtrpcServer::new().bind(address)
}
