//! What every implementation needs beside the floor: a new connection to the agent over vsock, and
//! a call that does nothing (the health check of Kata's agent), as often as `ecr-runtime` waits for
//! an answer of the guest. The floor's client has its connection already and waits once. Without
//! KVM most of that is vhost-device-vsock's and the emulated guest's time, not that of a hot-plug.

use std::time::{Duration, Instant};

use agent_api::{agent::CheckRequest, agent_ttrpc::HealthClient};
use guest_observer::Request;
use host_trigger::{Deadline, kata::agent_address};
use serde_json::Value;
use vm_harness::{AgentProxy, EcrRuntime, Error, ObserverConnection, Sandbox};

use super::{row::Row, samples::Samples, subject::Subject};

const LIMIT: Duration = Duration::from_secs(10);

/// The times of the transport alone.
#[derive(Default)]
pub(super) struct Transport {
    connect: Samples,
    call: Samples,
    floor: Samples,
}

/// How often a command connects to the guest, and waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RoundTrips {
    connections: u64,
    answers: u64,
}

impl Transport {
    pub(super) async fn round(
        &mut self,
        subject: &Subject,
        observer: &mut ObserverConnection,
    ) -> Result<(), Error> {
        let (connect, call) = health_check(&subject.sandbox).await?;
        self.connect.add(connect);
        self.call.add(call);
        let start = Instant::now();
        observer.ask(&Request::Read { path: "/dev/null".to_owned() }).await?;
        self.floor.add(start.elapsed());
        Ok(())
    }

    /// Returns the time of so many round trips, at the median.
    pub(super) fn of(&self, trips: RoundTrips) -> u64 {
        trips.connections * self.connect.median() + trips.answers * self.call.median()
    }

    /// Returns the time of the floor's round trip, at the median.
    pub(super) fn of_floor(&self) -> u64 {
        self.floor.median()
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        vec![
            Row::times("a connection to the agent", self.connect.clone()),
            Row::times("a call of the agent that does nothing", self.call.clone()),
            Row::times("a request of the floor that does nothing", self.floor.clone()),
        ]
    }
}

/// Returns the time to connect, and the time of the call.
async fn health_check(sandbox: &Sandbox) -> Result<(Duration, Duration), Error> {
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

impl RoundTrips {
    /// Counts those of one command.
    pub(super) async fn of(subject: &Subject, command: EcrRuntime) -> Result<Self, Error> {
        let hybrid = subject.sandbox.run_directory().vm().join("vm.vsock");
        let proxy = AgentProxy::start(&hybrid)?;
        let agent = proxy.address(&subject.sandbox);
        subject.call(&command.args(["--agent", &agent])).await;
        Ok(Self::in_lines(&proxy.lines()))
    }

    /// An answer counts where it is the first one after something of the client on its connection.
    fn in_lines(lines: &[Value]) -> Self {
        let mut trips = Self { connections: 0, answers: 0 };
        let mut waiting = Vec::new();
        for line in lines {
            let connection = &line["connection"];
            let is_handshake =
                line["line"].as_str().is_some_and(|text| text.starts_with("CONNECT"));
            if is_handshake {
                trips.connections += 1;
            } else if line["from"] == "client" {
                waiting.push(connection);
            } else if waiting.contains(&connection) {
                waiting.retain(|waiting| *waiting != connection);
                trips.answers += 1;
            }
        }
        trips
    }
}

impl std::fmt::Display for RoundTrips {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { connections, answers } = self;
        write!(formatter, "connections: {connections}, waits for an answer: {answers}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_in_a_row_are_one_round_trip() {
        let line = |connection: u32, from: &str, line: Value| json!({ "connection": connection, "from": from, "line": line });
        let lines = [
            line(0, "client", "CONNECT 1024".into()),
            line(0, "server", "OK 1024".into()),
            line(0, "client", json!({ "request": "s/Plug" })),
            line(0, "server", json!({ "bytes": 20 })),
            line(0, "server", json!({ "bytes": 20 })),
            line(0, "client", json!({ "bytes": 20 })),
            line(0, "client", json!({ "bytes": 20 })),
            line(0, "server", json!({ "bytes": 20 })),
        ];
        assert_eq!(RoundTrips::in_lines(&lines), RoundTrips { connections: 1, answers: 2 });
    }
}
