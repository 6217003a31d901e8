//! The calls of the API, over [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md),
//! to the plugin in the guest's agent.

use std::{fmt, time::Duration};

use block_volume_api::{
    API_LEVEL,
    block_volume::{
        AttachRequest, AttachResponse, DetachRequest, DetachResponse, Failure, InspectRequest,
        InspectResponse, ProbeRequest, ProbeResponse, Reason, ResizeRequest, ResizeResponse,
    },
    block_volume_ttrpc::BlockVolumeClient,
};
use ttrpc::{Code, r#async::Client, context::Context};

use crate::{Deadline, Error, guest_holder::GuestHolder, sanitize::sanitize};

/// The maximum time that the API lets a request ask for.
pub(crate) const MAX_REQUEST_TIME: Duration = Duration::from_secs(600);

/// Converts `time` to a request's `timeout_ms`, within the bounds of the API.
pub(crate) fn timeout_ms(time: Duration) -> u64 {
    // The clamped time fits.
    u64::try_from(time.clamp(Duration::from_millis(1), MAX_REQUEST_TIME).as_millis()).unwrap_or(1)
}

/// The block volume service of one agent.
#[derive(Clone)]
pub struct Agent {
    client: BlockVolumeClient,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Agent")
    }
}

/// A reply that may carry a failure.
trait Reply {
    fn failure(&mut self) -> Option<Failure>;
}

macro_rules! reply {
    ($($kind:ty),*) => {
        $(impl Reply for $kind {
            fn failure(&mut self) -> Option<Failure> {
                self.failure.take()
            }
        })*
    };
}

reply!(ProbeResponse, AttachResponse, DetachResponse, InspectResponse, ResizeResponse);

impl Agent {
    /// The service behind `client`.
    pub fn new(client: Client) -> Self {
        Self { client: BlockVolumeClient::new(client) }
    }

    pub(super) fn client(&self) -> &BlockVolumeClient {
        &self.client
    }

    /// Asks for the guest's capabilities, and for the state of `paths` for devices and of
    /// `mount_paths` in `container`.
    ///
    /// # Errors
    /// The agent has no plugin, speaks another API level, refuses, or does not reply.
    pub async fn probe(
        &self,
        container: &str,
        paths: Vec<String>,
        mount_paths: Vec<String>,
        deadline: Deadline,
    ) -> Result<ProbeResponse, Error> {
        let container_id = container.to_owned();
        let request = ProbeRequest { container_id, paths, mount_paths, ..Default::default() };
        let reply = call("Probe", deadline, |context| self.client.probe(context, &request)).await?;
        probed(reply)
    }

    /// Attaches volumes at their device paths.
    ///
    /// # Errors
    /// The guest reports a failure, or the reply was lost: the result of the request is then
    /// unknown.
    pub async fn attach(
        &self,
        request: &AttachRequest,
        deadline: Deadline,
    ) -> Result<AttachResponse, Error> {
        accepted(call("Attach", deadline, |context| self.client.attach(context, request)).await?)
    }

    /// Detaches volumes.
    ///
    /// # Errors
    /// The guest reports a failure, or the reply was lost.
    pub async fn detach(
        &self,
        request: &DetachRequest,
        deadline: Deadline,
    ) -> Result<DetachResponse, Error> {
        detached(call("Detach", deadline, |context| self.client.detach(context, request)).await?)
    }

    /// Asks for the state of attachments in the guest; changes nothing.
    ///
    /// # Errors
    /// The guest reports a failure, or does not reply.
    pub async fn inspect(
        &self,
        request: &InspectRequest,
        deadline: Deadline,
    ) -> Result<InspectResponse, Error> {
        accepted(call("Inspect", deadline, |context| self.client.inspect(context, request)).await?)
    }

    /// Makes the guest read the sizes of disks again.
    ///
    /// # Errors
    /// The guest reports a failure, or the reply was lost.
    pub async fn resize(
        &self,
        request: &ResizeRequest,
        deadline: Deadline,
    ) -> Result<ResizeResponse, Error> {
        accepted(call("Resize", deadline, |context| self.client.resize(context, request)).await?)
    }
}

/// Makes a call. The wait ends here and not in ttrpc, whose client reports its own time-out only by
/// a text that differs between versions. The limit that is sent to the server is a little longer,
/// so that this one comes first.
async fn call<T>(
    method: &'static str,
    deadline: Deadline,
    call: impl AsyncFnOnce(Context) -> ttrpc::Result<T>,
) -> Result<T, Error> {
    match deadline.wait(call(context(deadline))).await {
        Ok(reply) => reply.map_err(|e| call_error(method, e)),
        Err(_) => Err(Error::AgentTimedOut { method }),
    }
}

/// What the server is told of the deadline of a call.
pub(super) fn context(deadline: Deadline) -> Context {
    ttrpc::context::with_duration(deadline.remaining() + Duration::from_secs(1))
}

/// Checks what a guest reports of itself.
///
/// # Errors
/// It speaks another API level, or reports a failure.
pub(crate) fn probed(reply: ProbeResponse) -> Result<ProbeResponse, Error> {
    if reply.api_level != API_LEVEL {
        return Err(Error::ApiLevel { guest: reply.api_level });
    }
    accepted(reply)
}

/// Whether the plugin can mount file systems. One that cannot does not know such a request.
pub(crate) fn can_mount(reply: &ProbeResponse) -> bool {
    reply.capabilities.iter().any(|capability| capability == "mount")
}

/// Checks the reply to a request to attach.
///
/// # Errors
/// The guest reports a failure.
pub(crate) fn attached(reply: AttachResponse) -> Result<AttachResponse, Error> {
    accepted(reply)
}

/// Checks the reply to a request to detach.
///
/// # Errors
/// The guest reports a failure.
pub(super) fn detached(reply: DetachResponse) -> Result<DetachResponse, Error> {
    let is_busy =
        |failure: &&Failure| failure.reason == Reason::REASON_BUSY.into() && failure.undone;
    match reply.failure.as_ref().filter(is_busy) {
        Some(failure) if !reply.holders.is_empty() => Err(Error::InUse {
            volume: sanitize(&failure.serial),
            holders: GuestHolder::from_reply(&reply.holders),
        }),
        _ => accepted(reply),
    }
}

fn accepted<T: Reply>(mut reply: T) -> Result<T, Error> {
    match reply.failure() {
        None => Ok(reply),
        Some(failure) => Err(Error::Guest {
            reason: failure.reason.enum_value().unwrap_or_default(),
            message: failure.message,
            undone: failure.undone,
            volume: failure.serial,
        }),
    }
}

/// An agent that lacks the service replies `INVALID_ARGUMENT` ("… service does not exist", ttrpc
/// 0.9 and 0.10) or, in Go, `UNIMPLEMENTED`; one that lacks the method `UNIMPLEMENTED` ("… method")
/// or, if only the handler is missing, `NOT_FOUND` ("… is not supported"). Of a stream without a
/// method the first message may be answered before the call: "Stream is no longer active".
pub(super) fn call_error(method: &'static str, error: ttrpc::Error) -> Error {
    match error {
        ttrpc::Error::RpcStatus(status) => match status.code() {
            Code::INVALID_ARGUMENT if status.message().contains("does not exist") => {
                Error::NoPlugin
            }
            Code::INVALID_ARGUMENT if status.message().contains("no longer active") => {
                Error::NoMethod { method }
            }
            Code::DEADLINE_EXCEEDED => Error::AgentTimedOut { method },
            Code::UNIMPLEMENTED | Code::NOT_FOUND => Error::NoMethod { method },
            code => Error::AgentStatus {
                method,
                code: format!("{code:?}"),
                message: status.message().to_owned(),
            },
        },
        _ => Error::AgentLost { method },
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Duration::ZERO, 1)]
    #[case(Duration::from_millis(1500), 1500)]
    #[case(Duration::from_secs(86_400), 600_000)]
    fn a_request_asks_for_no_more_time_than_the_api_allows(
        #[case] time: Duration,
        #[case] millis: u64,
    ) {
        assert_eq!(timeout_ms(time), millis);
    }
}
