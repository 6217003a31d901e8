//! A vsock port that serves only the plugin, for an agent whose ttrpc differs from the plugin's.

use std::io;
use std::sync::Arc;

use agent_plugin::tokio_vsock::{VsockAddr, VsockListener, VMADDR_CID_ANY};
use tokio::sync::Mutex;

use crate::sandbox::Sandbox;

/// Starts to serve the plugin on its own vsock port.
pub(crate) fn serve(sandbox: Arc<Mutex<Sandbox>>, port: u32) -> io::Result<()> {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port))?;
    let agent = crate::block_volume::agent(sandbox);
    tokio::spawn(async move {
        if let Err(error) = agent_plugin::serve(agent, listener).await {
            let log = slog_scope::logger();
            slog::error!(log, "block volumes on vsock port {}: {}", port, error);
        }
    });
    Ok(())
}
