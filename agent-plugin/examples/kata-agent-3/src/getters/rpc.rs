//! The stub's `rpc.rs`: the agent's server, whose ttrpc is older than the plugin's.

use std::io;
use std::sync::Arc;

use tokio::sync::Mutex;
use ttrpc::r#async::Server as TtrpcServer;

use crate::sandbox::Sandbox;

struct AgentService {
    sandbox: Arc<Mutex<Sandbox>>,
}

/// Binds the agent's server; the caller starts it. (kata-agent registers its services.)
pub(crate) async fn start(s: Arc<Mutex<Sandbox>>, server_address: &str) -> io::Result<TtrpcServer> {
    #[cfg(feature = "block-volume")]
    crate::own_port::serve(s.clone(), 1031)?;
    let agent_service = AgentService { sandbox: s };
    drop(agent_service.sandbox);

    TtrpcServer::new()
        .bind(server_address)
        .map_err(io::Error::other)
}
