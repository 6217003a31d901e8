//! A client of Kata's agent protocol, on one connection to the agent in the guest.

use std::{path::Path, time::Duration};

use agent_api::{
    agent::{CheckRequest, GuestDetailsRequest, GuestDetailsResponse},
    agent_ttrpc::{AgentServiceClient, HealthClient},
};
use ttrpc::{
    r#async::{Client, transport::Socket},
    context::Context,
};

use crate::{Error, vsock};

/// The agent's port, in Kata and here.
pub(crate) const PORT: u32 = 1024;

/// One connection to an agent. Clones share it.
#[derive(Clone)]
pub struct Agent {
    client: AgentServiceClient,
    limit: Duration,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Agent").finish_non_exhaustive()
    }
}

impl Agent {
    /// Connects as soon as an agent answers its health check. The only place of the harness that
    /// polls: nothing in a guest announces that its agent listens. The caller bounds the wait.
    pub(crate) async fn when_it_answers(hybrid: &Path, limit: Duration) -> Self {
        // A request that reaches the back end while the guest's driver comes up can be lost: then
        // neither an answer nor an end of file follows. A guest that is restored has its driver
        // soon; one that is slow gets more and more time.
        let mut patience = Duration::from_millis(60);
        loop {
            let attempt = tokio::time::timeout(patience, vsock::connect(hybrid, PORT)).await;
            if attempt.is_err() {
                patience = (patience * 2).min(Duration::from_millis(500));
            }
            if let Ok(Ok(stream)) = attempt {
                let connection = Client::new(Socket::new(stream));
                let health = HealthClient::new(connection.clone());
                if health.check(context(Duration::from_secs(5)), &CheckRequest::new()).await.is_ok()
                {
                    return Self { client: AgentServiceClient::new(connection), limit };
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The generated client, for calls that this type has no name for.
    pub fn service(&self) -> &AgentServiceClient {
        &self.client
    }

    /// A deadline for a call.
    pub fn context(&self) -> Context {
        context(self.limit)
    }

    /// The agent's own description.
    ///
    /// # Errors
    /// The agent refuses, or doesn't answer.
    pub async fn details(&self) -> Result<GuestDetailsResponse, Error> {
        let answer =
            self.client.get_guest_details(self.context(), &GuestDetailsRequest::new()).await;
        answer.map_err(|source| Error::Agent { call: "GetGuestDetails", source })
    }
}

fn context(limit: Duration) -> Context {
    ttrpc::context::with_timeout(i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX))
}
