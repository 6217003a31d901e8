//! An attach in the guest, step by step, beside QEMU's work:
//!
//! | step | the guest |
//! |---|---|
//! | `start` | looks up everything that can be known before the disks exist |
//! | `ready` | has found that they can be attached |
//! | `go` | finds the disks that QEMU has now, and makes device nodes |
//! | `prepared` | knows the outcomes, and has published nothing |
//! | `attached` | has published the volumes |
//! | `commit` | keeps them; until then the end of the conversation rolls back |
//!
//! An agent without the conversation (`Plug`) takes the same steps by two calls: `Probe` is
//! `ready`, and `Attach` is all that follows `go`.

use std::time::{Duration, Instant};

use block_volume_api::block_volume::{
    AttachRequest, AttachResponse, Attached, Attachment, ProbeResponse, Stage,
};

use super::{
    commit,
    guest_request::{REPLY_GRACE, RequestTime},
    session::PROBE_TIMEOUT,
};
use crate::{
    Deadline, Error,
    kata::{
        agent::{self, Agent},
        plug_stream::{PLUG, PlugStream, Step, unexpected},
    },
};

/// One attach of several volumes.
#[derive(Debug)]
pub(crate) struct GuestAttach {
    agent: Agent,
    attachments: Vec<Attachment>,
    /// The end of the command.
    deadline: Deadline,
    /// When a reply is taken for lost.
    reply_by: Deadline,
    peer: Peer,
    /// What the guest said that the outcomes will be.
    prepared: Vec<Attached>,
    /// How the conversation ended, if it did not with a commit.
    failed: Option<Failed>,
}

/// How the guest is spoken to.
#[derive(Debug)]
enum Peer {
    /// By the conversation.
    Conversation(PlugStream),
    /// By calls, as its agent has no conversation; the reply to `Attach`, once it is there.
    Calls { reply: AttachResponse },
}

/// What is known after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failed {
    /// The guest said that it rolled back everything.
    RolledBack,
    /// The guest said that it did not, or says nothing any more.
    Unknown,
}

impl GuestAttach {
    /// Begins, with most of the time that is left until `deadline`.
    ///
    /// # Errors
    /// The agent is lost.
    pub(crate) async fn start(
        agent: Agent,
        attachments: Vec<Attachment>,
        deadline: Deadline,
    ) -> Result<Self, Error> {
        let RequestTime { timeout_ms, reply_by } = RequestTime::until(deadline);
        let start =
            AttachRequest { attachments: attachments.clone(), timeout_ms, ..Default::default() };
        let stream = agent.plug(start, reply_by).await?;
        let peer = Peer::Conversation(stream);
        let (prepared, failed) = (Vec::new(), None);
        Ok(Self { agent, attachments, deadline, reply_by, peer, prepared, failed })
    }

    /// Awaits that the volumes can be attached: what the guest has found, and how long it took.
    ///
    /// # Errors
    /// They cannot, or the guest does not reply.
    pub(crate) async fn ready(&mut self) -> Result<(ProbeResponse, Duration), Error> {
        let start = Instant::now();
        let limit = self.deadline.capped(PROBE_TIMEOUT).min(self.reply_by);
        let found = match self.next(limit).await {
            Ok(Step::Ready(found)) => agent::probed(found),
            Ok(_) => Err(out_of_order()),
            Err(Error::NoMethod { .. }) => {
                self.peer = Peer::Calls { reply: AttachResponse::new() };
                self.failed = None;
                self.probe().await
            }
            Err(e) => Err(e),
        };
        Ok((found?, start.elapsed()))
    }

    /// As a peer without the conversation is asked.
    async fn probe(&self) -> Result<ProbeResponse, Error> {
        // All volumes of one call are for one container.
        let container = self.attachments.first().map_or("", |volume| volume.container_id.as_str());
        let paths = |of_mounts: bool| {
            let all = self.attachments.iter();
            let volumes = all.filter(|volume| volume.mount.is_some() == of_mounts);
            volumes.map(|volume| volume.path.clone()).collect()
        };
        let deadline = self.deadline.capped(PROBE_TIMEOUT);
        self.agent.probe(container, paths(false), paths(true), deadline).await
    }

    /// Says that QEMU has the disks. From now on the guest may have something of them.
    ///
    /// # Errors
    /// The agent is lost.
    pub(crate) async fn go(&mut self) -> Result<(), Error> {
        match &mut self.peer {
            Peer::Conversation(stream) => {
                let sent = stream.go(self.reply_by).await;
                self.checked(sent)
            }
            Peer::Calls { .. } => Ok(()),
        }
    }

    /// Awaits the outcomes, one for each attachment in their order.
    ///
    /// # Errors
    /// The guest reports a failure or something else than what was requested, or does not reply.
    pub(crate) async fn prepared(&mut self) -> Result<Vec<Attached>, Error> {
        let prepared = match &self.peer {
            Peer::Conversation(_) => match self.next(self.reply_by).await? {
                Step::Prepared(prepared) => prepared,
                _ => return Err(out_of_order()),
            },
            Peer::Calls { .. } => {
                let RequestTime { timeout_ms, reply_by } = RequestTime::until(self.deadline);
                let attachments = self.attachments.clone();
                let request = AttachRequest { attachments, timeout_ms, ..Default::default() };
                let reply = self.agent.attach(&request, reply_by).await;
                let reply = self.checked(reply)?;
                self.peer = Peer::Calls { reply: reply.clone() };
                reply
            }
        };
        let prepared = agent::attached(prepared);
        let prepared = self.checked(prepared)?.attached;
        if prepared.len() != self.attachments.len() {
            return Err(commit::mismatch("another number of volumes"));
        }
        for (requested, attached) in self.attachments.iter().zip(&prepared) {
            commit::check(requested, attached)?;
        }
        self.prepared.clone_from(&prepared);
        Ok(prepared)
    }

    /// Awaits that the volumes are usable in the container. Returns the outcomes again, with the
    /// directories that the guest made indeed, and its stages.
    ///
    /// # Errors
    /// The guest reports a failure or another outcome than before, or does not reply.
    pub(crate) async fn attached(&mut self) -> Result<(Vec<Attached>, Vec<Stage>), Error> {
        let reply = match &mut self.peer {
            Peer::Conversation(_) => match self.next(self.reply_by).await? {
                Step::Attached(reply) => reply,
                _ => return Err(out_of_order()),
            },
            Peer::Calls { reply } => std::mem::take(reply),
        };
        let is_same = reply.attached.len() == self.prepared.len()
            && reply
                .attached
                .iter()
                .zip(&self.prepared)
                .all(|(now, then)| is_as_prepared(now, then));
        match is_same {
            true => Ok((reply.attached, reply.stages)),
            false => Err(unexpected("another outcome than it had prepared")),
        }
    }

    /// Makes the guest keep what it has done, and awaits that it has heard so: a message that is
    /// followed by the end of the connection may be lost.
    ///
    /// # Errors
    /// The guest reports a failure, or is lost. Whether it keeps the volumes is not known.
    pub(crate) async fn commit(&mut self) -> Result<(), Error> {
        let Peer::Conversation(stream) = &mut self.peer else { return Ok(()) };
        let sent = stream.commit(self.reply_by).await;
        self.checked(sent)?;
        match self.next_or_end(self.reply_by).await? {
            None => Ok(()),
            Some(_) => Err(out_of_order()),
        }
    }

    /// Ends an attach that is not to be committed. Returns whether the guest said that it has
    /// nothing of it any more.
    pub(crate) async fn close(&mut self) -> bool {
        if self.failed.is_none()
            && let Peer::Conversation(stream) = &mut self.peer
        {
            let limit = Deadline::after(REPLY_GRACE);
            stream.close(limit).await;
            // Its last word is what became of the volumes, after steps that it took meanwhile.
            while let Ok(Some(_)) = self.next_or_end(limit).await {}
        }
        self.failed == Some(Failed::RolledBack)
    }

    /// Awaits the guest's next step.
    async fn next(&mut self, deadline: Deadline) -> Result<Step, Error> {
        match self.next_or_end(deadline).await? {
            Some(step) => Ok(step),
            None => {
                self.failed = Some(Failed::Unknown);
                Err(Error::AgentLost { method: PLUG })
            }
        }
    }

    /// Awaits the guest's next step, or `None` for the end of the conversation. Its failures are
    /// errors.
    async fn next_or_end(&mut self, deadline: Deadline) -> Result<Option<Step>, Error> {
        let Peer::Conversation(stream) = &mut self.peer else { return Ok(None) };
        let step = match stream.next(deadline).await {
            Ok(Some(Step::Attached(reply))) => agent::attached(reply).map(Step::Attached).map(Some),
            other => other,
        };
        self.checked(step)
    }

    /// Remembers what a failure of the guest or of the connection says.
    fn checked<T>(&mut self, reply: Result<T, Error>) -> Result<T, Error> {
        if let Err(e) = &reply {
            self.failed = Some(match e {
                Error::Guest { undone: true, .. } => Failed::RolledBack,
                _ => Failed::Unknown,
            });
        }
        reply
    }
}

/// Whether a volume is as it was prepared: directories that the container has made itself meanwhile
/// are the only difference.
fn is_as_prepared(attached: &Attached, prepared: &Attached) -> bool {
    let parents = |attached: &Attached| attached.outcome.parents_made.clone();
    let without_parents = |attached: &Attached| {
        let mut attached = attached.clone();
        attached.outcome.mut_or_insert_default().parents_made.clear();
        attached
    };
    without_parents(attached) == without_parents(prepared)
        && parents(attached).iter().all(|made| parents(prepared).contains(made))
}

fn out_of_order() -> Error {
    unexpected("a step out of order")
}
