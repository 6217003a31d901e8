//! The stub's `rpc.rs`: the agent's server with the agent's own services (only one of their
//! methods) and the plugin's service.

use std::sync::Arc;

use agent_api::agent::{AgentDetails, GuestDetailsRequest, GuestDetailsResponse};
use agent_api::agent_ttrpc::{self, create_health as create_health_service};
use async_trait::async_trait;
use tokio::sync::Mutex;
use ttrpc::r#async::{Server as TtrpcServer, TtrpcContext};
use ttrpc::Result;

use crate::features::get_build_features;
use crate::sandbox::Sandbox;

#[cfg(feature = "agent-policy")]
const NOTHING: serde_json::Value = serde_json::Value::Null;

struct AgentService {
    #[allow(
        dead_code,
        clippy::allow_attributes,
        reason = "kata-agent's methods use it, and the stub has none of them"
    )]
    sandbox: Arc<Mutex<Sandbox>>,
}

#[async_trait]
impl agent_ttrpc::AgentService for AgentService {
    async fn get_guest_details(
        &self,
        _: &TtrpcContext,
        _: GuestDetailsRequest,
    ) -> Result<GuestDetailsResponse> {
        let details = AgentDetails {
            extra_features: get_build_features(),
            ..AgentDetails::default()
        };
        // kata-agent asks its policy about every request. The stub ignores the answer: it asks so
        // that a build without the plugin has the policy engine, too (`ci/bench --size`).
        #[cfg(feature = "agent-policy")]
        let _ = crate::policy::is_allowed_with_entrypoint("GuestDetailsRequest", &NOTHING).await;
        Ok(GuestDetailsResponse {
            agent_details: Some(details).into(),
            ..GuestDetailsResponse::default()
        })
    }
}

struct HealthService;

impl agent_ttrpc::Health for HealthService {}

/// Binds the agent's server; the caller starts it.
#[rustfmt::skip] // The shape of kata-agent's function, whose parameters are more.
pub(crate) async fn start(
    s: Arc<Mutex<Sandbox>>,
    server_address: &str,
) -> Result<TtrpcServer> {
    #[cfg(feature = "block-volume")]
    let block_volume = agent_plugin::service(crate::block_volume::agent(s.clone()));

    let agent_service = Box::new(AgentService {
        sandbox: s,
    });
    let aservice = agent_ttrpc::create_agent_service(Arc::new(*agent_service));
    let hservice = create_health_service(Arc::new(HealthService));

    let server = TtrpcServer::new()
        .bind(server_address)?
        .register_service(aservice)
        .register_service(hservice);
    #[cfg(feature = "block-volume")]
    let server = server.register_service(block_volume);

    Ok(server)
}
