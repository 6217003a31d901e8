//! Binds the agent's own server on vsock so that a connection does not delay the others.

use agent_plugin::tokio_vsock::{VsockAddr, VsockListener, VMADDR_CID_ANY};
use ttrpc::r#async::Server;

/// As `Server::new().bind(address)`, without the pause of `accept` for `vsock://-1:PORT`.
pub(crate) fn bind(address: &str) -> ttrpc::Result<Server> {
    let port = match address
        .strip_prefix("vsock://-1:")
        .and_then(|port| port.parse().ok())
    {
        Some(port) => port,
        None => return Server::new().bind(address),
    };
    let listener =
        VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).and_then(agent_plugin::incoming);
    let listener = listener.map_err(|error| ttrpc::Error::Socket(error.to_string()))?;
    Ok(Server::new().add_listener(listener))
}
