//! The conversation `Plug` of the API: a stream of
//! [ttrpc](https://github.com/containerd/ttrpc/blob/main/PROTOCOL.md#streaming) in both directions.

use std::{fmt, pin::Pin};

use block_volume_api::block_volume::{
    AttachRequest, HoldRequest, PlugCommit, PlugGo, PlugRequest, PlugResponse, plug_request,
    plug_response,
};
use ttrpc::r#async::{CSReceiver, CSSender};

use super::agent::{call_error, context};
use crate::{Deadline, Error};

/// The name of the method.
pub(crate) const PLUG: &str = "Plug";

/// What the guest says.
pub(crate) type Step = plug_response::Step;

/// The host's end of a conversation. The end of the stream makes the guest roll back what was not
/// committed; a stream that is dropped is closed.
pub(crate) struct PlugStream {
    sender: CSSender<PlugRequest>,
    replies: CSReceiver<PlugResponse>,
    /// The call `Hold` beside it, by which the guest notices that this process is gone. Its reply
    /// says nothing that the end of the stream does not.
    _hold: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Neither side has ended the stream.
    is_open: bool,
}

impl fmt::Debug for PlugStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlugStream").field("is_open", &self.is_open).finish_non_exhaustive()
    }
}

impl super::agent::Agent {
    /// Begins a conversation about `start`. The guest's reply tells whether it has the method.
    ///
    /// # Errors
    /// The agent is lost.
    pub(crate) async fn plug(
        &self,
        mut start: AttachRequest,
        deadline: Deadline,
    ) -> Result<PlugStream, Error> {
        start.conversation = fastrand::u64(1..);
        let hold = self.hold(start.conversation, deadline).await;
        let stream = deadline.wait(self.client().plug(context(deadline))).await;
        let stream = stream.map_err(|_| Error::AgentTimedOut { method: PLUG })?;
        let (sender, replies) = stream.map_err(|e| call_error(PLUG, e))?.split();
        let mut stream = PlugStream { sender, replies, _hold: hold, is_open: true };
        stream.send(plug_request::Step::Start(start), deadline).await?;
        Ok(stream)
    }

    /// Sends `Hold`, whose reply comes at the end of the conversation.
    async fn hold(
        &self,
        conversation: u64,
        deadline: Deadline,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let client = self.client().clone();
        let request = HoldRequest { conversation, ..Default::default() };
        let mut hold: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let _ = client.hold(context(deadline), &request).await;
        });
        // The first poll sends it.
        let _ = futures_util::poll!(&mut hold);
        hold
    }
}

impl PlugStream {
    /// Says that QEMU has added the disks.
    ///
    /// # Errors
    /// The agent is lost.
    pub(crate) async fn go(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.send(plug_request::Step::Go(PlugGo::new()), deadline).await
    }

    /// Says that the outcome is recorded.
    ///
    /// # Errors
    /// The agent is lost.
    pub(crate) async fn commit(&mut self, deadline: Deadline) -> Result<(), Error> {
        self.send(plug_request::Step::Commit(PlugCommit::new()), deadline).await
    }

    async fn send(&mut self, step: plug_request::Step, deadline: Deadline) -> Result<(), Error> {
        let message = PlugRequest { step: Some(step), ..Default::default() };
        match deadline.wait(self.sender.send(&message)).await {
            Ok(sent) => sent.map_err(|e| call_error(PLUG, e)),
            Err(_) => Err(Error::AgentTimedOut { method: PLUG }),
        }
    }

    /// Awaits what the guest says next; `None`: it has ended the stream.
    ///
    /// # Errors
    /// The agent is lost, has no such method, or says nothing until the deadline.
    pub(crate) async fn next(&mut self, deadline: Deadline) -> Result<Option<Step>, Error> {
        let reply = deadline.wait(self.replies.recv()).await;
        let reply = reply.map_err(|_| Error::AgentTimedOut { method: PLUG })?;
        match reply {
            Ok(PlugResponse { step: Some(step), .. }) => Ok(Some(step)),
            Ok(PlugResponse { step: None, .. }) => Err(unexpected("a step that is not known")),
            Err(ttrpc::Error::Eof | ttrpc::Error::RemoteClosed) => {
                self.is_open = false;
                Ok(None)
            }
            Err(e) => {
                self.is_open = false;
                Err(call_error(PLUG, e))
            }
        }
    }

    /// Ends the stream, if the guest has not. It can still be read.
    pub(crate) async fn close(&mut self, deadline: Deadline) {
        if std::mem::take(&mut self.is_open) {
            // Of a connection that is lost, the guest sees the end.
            let _ = deadline.wait(self.sender.close_send()).await;
        }
    }
}

impl Drop for PlugStream {
    /// ttrpc says nothing to the peer when a stream is dropped, as it is after a signal.
    fn drop(&mut self) {
        if self.is_open
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let sender = self.sender.clone();
            runtime.spawn(async move { sender.close_send().await });
        }
    }
}

/// The error of a guest that breaks the protocol.
pub(crate) fn unexpected(what: &str) -> Error {
    Error::AgentReply { method: PLUG, what: what.to_owned() }
}
