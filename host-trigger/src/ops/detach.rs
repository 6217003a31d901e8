//! Detaches one volume, from the guest and then from QEMU: `hot-unplug`, and much of what `repair`
//! does. It goes by what exists, so the same steps detach a whole volume and what an interrupted
//! run left of one.
//!
//! The guest comes first
//! ([`device_del`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-qdev.device_del)
//! of a SCSI disk is a surprise removal) and may refuse; then nothing has changed.

use std::time::Duration;

use block_volume_api::block_volume::{DetachRequest, Detachment};
use block_volume_qmp::{Qmp, QmpError};
use serde_json::json;
use tokio::sync::Notify;

use super::{
    guest_request::{self, ROLLBACK_TIME},
    rollback,
    session::Guest,
};
use crate::{
    Deadline, Error,
    diagnostics::{self, StepLog},
    fault,
    guest_holder::GuestHolder,
    kata::{agent::Agent, agent_address, sandbox::Sandbox},
    left_behind::LeftBehind,
    qemu::{
        inventory::Inventory,
        removal::{self, Owner},
    },
    stopwatch::Stopwatch,
    volume_id::VolumeId,
};

/// A QEMU that has ended closes its connection immediately; one that is stopped does not.
const LIVENESS_TIMEOUT: Duration = Duration::from_millis(500);

/// The detachment of one volume.
#[derive(Debug)]
pub(crate) struct Detach<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) log: StepLog,
    pub(crate) deadline: Deadline,
    pub(crate) watch: &'a mut Stopwatch,
    pub(crate) qmp: &'a mut Qmp,
    pub(crate) id: &'a VolumeId,
    /// `None`: the guest cannot have anything of the volume.
    pub(crate) guest: Option<&'a Guest>,
    /// Detach from holders in the guest, too.
    pub(crate) force: bool,
    /// How long to wait for holders to release the volume.
    pub(crate) wait: Duration,
}

/// What the guest did.
#[derive(Debug, Default)]
pub(crate) struct Detached {
    /// The holders that lost the volume by force.
    pub(crate) broken_holders: Vec<GuestHolder>,
    pub(crate) left_behind: Vec<LeftBehind>,
}

impl Detach<'_> {
    /// Detaches what exists; `request` is what the guest is asked to detach. `impatient` ends a
    /// wait for holders. Prints a warning for each part that stays in the container.
    ///
    /// # Errors
    /// Unless it is [`Error::Incomplete`], nothing has changed.
    pub(crate) async fn run(
        &mut self,
        request: Option<Detachment>,
        impatient: &Notify,
    ) -> Result<Detached, Error> {
        let mut detached = Detached::default();
        fault::point("before-detach").await?;
        let one = request.as_ref().filter(|request| request.keep_disk).map(|request| {
            (request.attachment.container_id.clone(), request.attachment.path.clone())
        });
        if let (Some(guest), Some(request)) = (self.guest, request) {
            if self.deadline.remaining().is_zero() {
                return Err(Error::TimedOut { what: "the guest".to_owned() });
            }
            self.log.step(|| format!("the guest detaches volume {}", self.id));
            let patient = detach(guest, &request, self.force, self.wait, self.deadline);
            let done = tokio::select! {
                done = patient => done,
                () = impatient.notified(), if !self.wait.is_zero() => {
                    detach(guest, &request, false, Duration::ZERO, self.deadline).await
                }
            };
            match done {
                Ok(done) => detached = done,
                Err(cause) => return Err(self.incomplete_unless_undone(cause).await),
            }
            detached.left_behind.iter().for_each(|left| diagnostics::line(&left.to_string()));
            fault::point("after-detach").await?;
            self.watch.lap("detach");
        }
        let removed = self.remove_from_qemu(one).await;
        self.watch.lap("remove");
        removed.map(|()| detached)
    }

    /// Returns `cause` if the guest's failure left everything as it was, and
    /// [`Error::Incomplete`] with this cause if not.
    async fn incomplete_unless_undone(&mut self, cause: Error) -> Error {
        let what = match &cause {
            Error::Guest { undone: false, .. } => "has detached a part of it",
            Error::AgentLost { .. } | Error::AgentTimedOut { .. } => "may have detached it",
            _ => return cause,
        };
        if !self.qemu_runs().await {
            return cause;
        }
        let left = vec![format!("volume {}: the guest {what}, QEMU still has it", self.id)];
        Error::Incomplete { cause: Box::new(cause), left }
    }

    /// Whether QEMU runs. If it has ended, the VM has ended with it, and nothing of any volume is
    /// left.
    async fn qemu_runs(&mut self) -> bool {
        let deadline = Deadline::after(LIVENESS_TIMEOUT);
        self.qmp.set_deadline(deadline);
        match self.qmp.execute("query-status", json!({})).await {
            Err(QmpError::Disconnected { .. }) => {
                self.qmp.close();
                !matches!(rollback::reconnect(self.sandbox, deadline).await, Ok(None))
            }
            _ => true,
        }
    }

    /// Removes the volume from QEMU; with `one`, only the attachment of this container at this
    /// path.
    async fn remove_from_qemu(&mut self, one: Option<(String, String)>) -> Result<(), Error> {
        let one = one.as_ref().map(|(container, path)| (container.as_str(), path.as_str()));
        self.log.step(|| format!("QEMU removes volume {}", self.id));
        let deadline = self.deadline.max(Deadline::after(ROLLBACK_TIME));
        self.qmp.set_deadline(deadline);
        let mut removed = self.try_remove(one, deadline).await;
        if let Err(Error::Qmp(e)) = &removed
            && e.ends_connection()
        {
            self.log.step(|| "connecting to QEMU again".to_owned());
            self.qmp.close();
            removed = match rollback::reconnect(self.sandbox, deadline).await {
                Ok(Some(qmp)) => {
                    *self.qmp = qmp;
                    self.try_remove(one, deadline).await
                }
                // The VM ended with QEMU, and everything in it.
                Ok(None) => return removed,
                Err(e) => Err(e),
            };
        }
        removed.map_err(|cause| Error::Incomplete {
            cause: Box::new(cause),
            left: vec![format!("volume {}: QEMU still has a part of it", self.id)],
        })
    }

    /// Removes what exists, and checks that it is gone.
    async fn try_remove(
        &mut self,
        one: Option<(&str, &str)>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        match one {
            Some((container, path)) => {
                removal::remove_attachment(self.qmp, self.id, container, path).await?;
            }
            None => removal::remove(self.qmp, self.id, Owner::Any, deadline).await?,
        }
        fault::point("after-remove").await?;
        // A stopped QEMU 7.2 replies that it removed a descriptor, and keeps it.
        let left = Inventory::read(self.qmp).await?.volume(self.id);
        let is_gone = match one {
            Some((container, path)) => {
                !left.attachments().iter().any(|known| known.is_at(container, path))
            }
            None => left.is_absent(),
        };
        match is_gone {
            true => Ok(()),
            false => Err(Error::TimedOut { what: format!("QEMU to remove volume {}", self.id) }),
        }
    }
}

/// Asks the guest to detach, again if the connection was lost: what is done is not done twice.
async fn detach(
    guest: &Guest,
    detachment: &Detachment,
    force: bool,
    wait: Duration,
    deadline: Deadline,
) -> Result<Detached, Error> {
    let patience = Deadline::after(wait);
    let request = || DetachRequest {
        detachments: vec![detachment.clone()],
        force,
        // The command line bounds the wait, so it fits.
        wait_ms: u64::try_from(patience.remaining().as_millis()).unwrap_or(u64::MAX),
        ..Default::default()
    };
    let reply = match guest_request::send_detach(&guest.agent, request(), deadline).await {
        Err(Error::AgentLost { method }) => {
            let Ok(client) = agent_address::dial(&guest.address, deadline).await else {
                return Err(Error::AgentLost { method });
            };
            guest_request::send_detach(&Agent::new(client), request(), deadline).await
        }
        done => done,
    };
    let reply = reply?;
    Ok(Detached {
        broken_holders: GuestHolder::from_reply(&reply.holders),
        left_behind: LeftBehind::from_reply(&reply.left_behind),
    })
}
