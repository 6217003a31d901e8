//! The minimum cost of a call of the agent: a new connection over vsock, and one call that does
//! nothing (the health check of Kata's agent). `Probe` has to come before QEMU is changed, so every
//! hot-plug has this cost.

use std::time::{Duration, Instant};

use agent_api::{agent::CheckRequest, agent_ttrpc::HealthClient};
use host_trigger::{Deadline, kata::agent_address};
use vm_harness::{Error, Sandbox};

const LIMIT: Duration = Duration::from_secs(10);

/// Returns the time to connect, and the time of the call.
pub(super) async fn health_check(sandbox: &Sandbox) -> Result<(Duration, Duration), Error> {
    let unreachable = |error: host_trigger::Error| Error::Monitor(error.to_string());
    let address = sandbox.agent_url().parse().map_err(unreachable)?;
    let start = Instant::now();
    let connection =
        agent_address::dial(&address, Deadline::after(LIMIT)).await.map_err(unreachable)?;
    let connected = start.elapsed();
    let context = ttrpc::context::with_timeout(i64::try_from(LIMIT.as_nanos()).unwrap_or(i64::MAX));
    let answer = HealthClient::new(connection).check(context, &CheckRequest::new()).await;
    answer.map_err(|source| Error::Agent { call: "Check", source })?;
    Ok((connected, start.elapsed() - connected))
}
