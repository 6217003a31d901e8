//! The conversation `Unplug` of the API: a call of
//! [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md#streaming) with a stream of
//! replies.

use std::fmt;

use block_volume_api::block_volume::{
    DetachRequest, DetachResponse, UnplugResponse, unplug_response,
};
use ttrpc::r#async::ClientStreamReceiver;

use super::agent::{Agent, call_error, context, detached};
use crate::{Deadline, Error};

/// The name of the method.
const UNPLUG: &str = "Unplug";

/// The replies to one request.
pub(crate) struct UnplugStream(ClientStreamReceiver<UnplugResponse>);

impl fmt::Debug for UnplugStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnplugStream")
    }
}

/// What the guest says.
#[derive(Debug)]
pub(crate) enum UnplugStep {
    /// It sends no further commands to the disks with these serial numbers, and removes them now.
    Released(Vec<String>),
    /// It has detached everything. This is the last step.
    Detached(DetachResponse),
}

impl Agent {
    /// Asks the guest to detach volumes, and to tell when it has released their disks. Its first
    /// reply tells whether it has the method.
    ///
    /// # Errors
    /// The agent is lost.
    pub(crate) async fn unplug(
        &self,
        request: &DetachRequest,
        deadline: Deadline,
    ) -> Result<UnplugStream, Error> {
        let stream = deadline.wait(self.client().unplug(context(deadline), request)).await;
        let stream = stream.map_err(|_| Error::AgentTimedOut { method: UNPLUG })?;
        Ok(UnplugStream(stream.map_err(|e| call_error(UNPLUG, e))?))
    }
}

impl UnplugStream {
    /// Awaits the next step.
    ///
    /// # Errors
    /// The guest reports a failure or has no such method, or its reply was lost.
    pub(crate) async fn next(&mut self, deadline: Deadline) -> Result<UnplugStep, Error> {
        loop {
            let reply = deadline.wait(self.0.recv()).await;
            let reply = reply.map_err(|_| Error::AgentTimedOut { method: UNPLUG })?;
            let reply = reply.map_err(|e| call_error(UNPLUG, e))?;
            let reply = reply.ok_or(Error::AgentLost { method: UNPLUG })?;
            match reply.step {
                Some(unplug_response::Step::Released(released)) => {
                    return Ok(UnplugStep::Released(released.serials));
                }
                Some(unplug_response::Step::Detached(reply)) => {
                    return detached(reply).map(UnplugStep::Detached);
                }
                // A step of a later version, which says more than this one needs.
                Some(_) | None => {}
            }
        }
    }

    /// Awaits the last step.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub(crate) async fn last(&mut self, deadline: Deadline) -> Result<DetachResponse, Error> {
        loop {
            if let UnplugStep::Detached(reply) = self.next(deadline).await? {
                return Ok(reply);
            }
        }
    }
}
