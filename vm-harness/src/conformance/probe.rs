//! A call of the plugin's method `Probe` that keeps "the agent has no plugin" apart from an error
//! of the harness.

use block_volume_api::block_volume::{ProbeRequest, ProbeResponse};

use crate::{Error, Sandbox};

/// Calls `Probe`. The inner result is an error if there is no plugin: the agent does not know the
/// service, or no process listens on the plugin's port.
pub(super) async fn probe(
    sandbox: &Sandbox,
    request: &ProbeRequest,
) -> Result<Result<ProbeResponse, String>, Error> {
    let call = async {
        let service = sandbox.block_volume_service().await?;
        let answer = service.probe(sandbox.agent().context(), request).await;
        answer.map_err(|source| Error::Agent { call: "Probe", source })
    };
    match call.await {
        Ok(answer) => Ok(Ok(answer)),
        Err(Error::Agent { source: ttrpc::Error::RpcStatus(status), .. }) => {
            Ok(Err(status.message))
        }
        // The agent's own port has answered before, a separate port has not.
        Err(error) if sandbox.has_own_plugin_port() => Ok(Err(error.chain())),
        Err(error) => Err(error),
    }
}
