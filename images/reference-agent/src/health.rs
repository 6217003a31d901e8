//! `grpc.Health`: reports that the agent responds, and its version.

use agent_api::{agent, agent_ttrpc};
use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;

/// The agent serves as long as it can answer.
pub(crate) struct Health;

#[async_trait]
impl agent_ttrpc::Health for Health {
    async fn check(
        &self,
        _ctx: &TtrpcContext,
        _request: agent::CheckRequest,
    ) -> ttrpc::Result<agent::HealthCheckResponse> {
        let mut reply = agent::HealthCheckResponse::new();
        reply.status = agent::health_check_response::ServingStatus::SERVING.into();
        Ok(reply)
    }

    async fn version(
        &self,
        _ctx: &TtrpcContext,
        _request: agent::CheckRequest,
    ) -> ttrpc::Result<agent::VersionCheckResponse> {
        let mut reply = agent::VersionCheckResponse::new();
        reply.grpc_version = "0.0.1".into();
        reply.agent_version = env!("CARGO_PKG_VERSION").into();
        Ok(reply)
    }
}
