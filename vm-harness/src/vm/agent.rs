//! A client of Kata's agent protocol, on one connection to the agent in the guest.

use std::{io, net::Shutdown, os::unix::net::UnixStream, sync::Arc, time::Duration};

use agent_api::{
    agent::{CheckRequest, GuestDetailsRequest, GuestDetailsResponse},
    agent_ttrpc::{AgentServiceClient, HealthClient},
};
use tokio::io::AsyncReadExt as _;
use ttrpc::{
    r#async::{Client, transport::Socket},
    context::Context,
};

use super::vsock::Vsock;
use crate::{Error, environment::AGENT_PORT};

/// One connection to an agent. Clones share it.
#[derive(Clone)]
pub struct Agent {
    client: AgentServiceClient,
    /// The client's socket, which it does not give back.
    socket: Arc<UnixStream>,
    limit: Duration,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Agent").finish_non_exhaustive()
    }
}

impl Agent {
    /// Connects as soon as an agent answers its health check. It polls, because nothing in a guest
    /// announces that its agent listens. The caller sets the deadline.
    pub(crate) async fn when_it_answers(vsock: &Vsock, limit: Duration) -> Self {
        // A request that reaches the back end while the guest's driver initialises can be lost:
        // then neither an answer nor an end of file follows. A restored guest has its driver
        // soon; a slow guest gets more time with each attempt.
        let mut patience = Duration::from_millis(60);
        loop {
            let attempt = tokio::time::timeout(patience, vsock.connect(AGENT_PORT)).await;
            if attempt.is_err() {
                patience = (patience * 2).min(Duration::from_millis(500));
            }
            if let Ok(Ok((stream, socket))) = attempt.map(|stream| stream.and_then(duplicate)) {
                let connection = Client::new(Socket::new(stream));
                let health = HealthClient::new(connection.clone());
                if health.check(context(Duration::from_secs(5)), &CheckRequest::new()).await.is_ok()
                {
                    let client = AgentServiceClient::new(connection);
                    return Self { client, socket: Arc::new(socket), limit };
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the connection, and waits until the guest has ended it, too. No call works afterwards.
    ///
    /// An agent on tokio does not notice that the vsock device was removed below a connection: the
    /// kernel reports `EPOLLERR` alone, for which tokio wakes no reader. So a connection that was
    /// only dropped, shortly before, may stay open in the agent for ever.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub async fn close(&self) -> io::Result<()> {
        // Fails if the connection has ended already.
        let _ = self.socket.shutdown(Shutdown::Write);
        let mut stream = tokio::net::UnixStream::from_std(self.socket.try_clone()?)?;
        // The back end closes its end when the guest's kernel has answered with RST. What remains
        // to be read belongs to nobody, and an error is an end as well.
        while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
        Ok(())
    }

    /// Returns the generated client, for calls that this type has no method for.
    pub fn service(&self) -> &AgentServiceClient {
        &self.client
    }

    /// Returns a ttrpc context with the time limit of a call.
    pub fn context(&self) -> Context {
        context(self.limit)
    }

    /// Returns what the agent reports about itself (`GetGuestDetails`).
    ///
    /// # Errors
    /// The agent refuses, or does not answer.
    pub async fn details(&self) -> Result<GuestDetailsResponse, Error> {
        let answer =
            self.client.get_guest_details(self.context(), &GuestDetailsRequest::new()).await;
        answer.map_err(|source| Error::Agent { call: "GetGuestDetails", source })
    }
}

/// Returns the stream and a second descriptor of it.
fn duplicate(stream: tokio::net::UnixStream) -> io::Result<(tokio::net::UnixStream, UnixStream)> {
    let stream = stream.into_std()?;
    let second = stream.try_clone()?;
    Ok((tokio::net::UnixStream::from_std(stream)?, second))
}

fn context(limit: Duration) -> Context {
    ttrpc::context::with_timeout(i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX))
}
