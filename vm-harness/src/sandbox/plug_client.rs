//! The host's side of a Plug without `ecr-runtime`, step by step.

use std::time::Duration;

use block_volume_api::{
    block_volume::{
        AttachRequest, AttachResponse, HoldRequest, PlugCommit, PlugGo, PlugRequest, PlugResponse,
        ProbeResponse, Reason, plug_request::Step, plug_response::Step as Reply,
    },
    block_volume_ttrpc::BlockVolumeClient,
};
use tokio::task::JoinHandle;
use ttrpc::r#async::ClientStream;

use crate::{Sandbox, random_bytes};

/// A conversation on a connection of its own. Dropping it closes the connection.
#[derive(Debug)]
pub struct PlugConversation {
    stream: ClientStream<PlugRequest, PlugResponse>,
    hold: JoinHandle<()>,
    /// A reply is awaited for as long.
    patience: Duration,
}

impl Sandbox {
    /// Holds a conversation and sends its request.
    ///
    /// # Panics
    /// The agent cannot be reached.
    pub async fn plug(&self, mut request: AttachRequest) -> PlugConversation {
        let service = self.block_volume_service().await;
        let service = service.unwrap_or_else(|error| panic!("{}", error.chain()));
        let number = u64::from_le_bytes(random_bytes(8).try_into().expect("eight bytes")) | 1;
        request.conversation = number;
        let hold = HoldRequest { conversation: number, ..HoldRequest::default() };
        let holder = service.clone();
        // Its time-out would end it.
        let unlimited = ttrpc::context::Context::default();
        let hold = tokio::spawn(async move {
            let _ = holder.hold(unlimited, &hold).await;
        });
        let stream = open(&service, self.agent().context()).await;
        let patience = self.guest().scaled(Duration::from_secs(30));
        let conversation = PlugConversation { stream, hold, patience };
        conversation.send(Step::Start(request)).await;
        conversation
    }
}

async fn open(
    service: &BlockVolumeClient,
    context: ttrpc::context::Context,
) -> ClientStream<PlugRequest, PlugResponse> {
    service.plug(context).await.unwrap_or_else(|error| panic!("Plug: {error}"))
}

impl PlugConversation {
    /// Sends a step, which may be out of order.
    ///
    /// # Panics
    /// The connection is lost.
    pub async fn send(&self, step: Step) {
        let request = PlugRequest { step: Some(step), ..PlugRequest::default() };
        let sent = self.stream.send(&request).await;
        sent.unwrap_or_else(|error| panic!("a step of Plug was not sent: {error}"));
    }

    /// Says that QEMU has the disks.
    pub async fn go(&self) {
        self.send(Step::Go(PlugGo::default())).await;
    }

    /// Says that the outcome is recorded, and waits for the end of the conversation.
    ///
    /// # Panics
    /// The guest says something else.
    pub async fn commit(mut self) {
        self.send(Step::Commit(PlugCommit::default())).await;
        let end = self.recv().await;
        assert!(matches!(end, Err(ttrpc::Error::Eof)), "after the commit: {end:?}");
        // By itself.
        let hold = tokio::time::timeout(self.patience, &mut self.hold).await;
        hold.expect("the Hold never ended").expect("it does not panic");
    }

    /// Closes the stream, and keeps the connection.
    pub async fn close(&self) {
        self.stream.close_send().await.unwrap_or_else(|error| panic!("{error}"));
    }

    async fn recv(&mut self) -> ttrpc::Result<PlugResponse> {
        let reply = tokio::time::timeout(self.patience, self.stream.recv()).await;
        reply.unwrap_or_else(|_| panic!("no reply within {:?}", self.patience))
    }

    async fn reply(&mut self) -> Reply {
        let reply = self.recv().await.unwrap_or_else(|error| panic!("no reply: {error}"));
        reply.step.unwrap_or_else(|| panic!("an empty reply"))
    }

    /// Waits for `ready`.
    ///
    /// # Panics
    /// The guest says something else.
    pub async fn ready(&mut self) -> ProbeResponse {
        match self.reply().await {
            Reply::Ready(ready) => ready,
            other => panic!("not `ready`: {other:?}"),
        }
    }

    /// Waits for `prepared`.
    ///
    /// # Panics
    /// The guest says something else.
    pub async fn prepared(&mut self) -> AttachResponse {
        match self.reply().await {
            Reply::Prepared(prepared) => prepared,
            other => panic!("not `prepared`: {other:?}"),
        }
    }

    /// Waits for `attached`, without a failure.
    ///
    /// # Panics
    /// The guest says something else.
    pub async fn attached(&mut self) -> AttachResponse {
        match self.reply().await {
            Reply::Attached(attached) if attached.failure.is_none() => attached,
            other => panic!("not `attached`: {other:?}"),
        }
    }

    /// Waits for a failure before `ready`.
    ///
    /// # Panics
    /// The guest says something else.
    pub async fn refusal(mut self) -> (Reason, String) {
        match self.reply().await {
            Reply::Attached(reply) => self.last(reply).await,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// As [`failure`](Self::failure), and says `go` to a guest that is ready.
    ///
    /// # Panics
    /// As `failure` does.
    pub async fn failure_of_the_guest(mut self) -> (Reason, String) {
        loop {
            match self.reply().await {
                Reply::Ready(_) => self.go().await,
                Reply::Attached(reply) if reply.failure.is_some() => return self.last(reply).await,
                _ => {}
            }
        }
    }

    /// Waits for the failure that ends the conversation, whatever is said before, and returns its
    /// reason and its message.
    ///
    /// # Panics
    /// The conversation ends in another way, or something was not rolled back.
    pub async fn failure(mut self) -> (Reason, String) {
        loop {
            match self.reply().await {
                Reply::Attached(reply) if reply.failure.is_some() => return self.last(reply).await,
                _ => {}
            }
        }
    }

    async fn last(&mut self, reply: AttachResponse) -> (Reason, String) {
        let failure = reply.failure.into_option().expect("a failure");
        assert!(failure.undone && reply.attached.is_empty(), "{failure:?}");
        let end = self.recv().await;
        assert!(matches!(end, Err(ttrpc::Error::RemoteClosed)), "after a failure: {end:?}");
        (failure.reason.enum_value_or_default(), failure.message)
    }
}

impl Drop for PlugConversation {
    fn drop(&mut self) {
        self.hold.abort();
    }
}
