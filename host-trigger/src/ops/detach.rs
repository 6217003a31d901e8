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

use super::{
    guest_request::{self, ROLLBACK_TIME},
    rollback::{self, LIVENESS_TIMEOUT},
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
        abandoned,
        inventory::Inventory,
        removal::{self, Owner},
    },
    stopwatch::Stopwatch,
    volume_id::VolumeId,
};

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
    /// Only the records of an abandoned volume are left in QEMU.
    pub(crate) is_abandoned: bool,
    /// Detach from holders in the guest, too.
    pub(crate) force: bool,
    /// What the guest has left behind already, during a wait for the holders; warnings are printed.
    pub(crate) left_behind: Vec<LeftBehind>,
}

/// What the guest did.
#[derive(Debug, Default)]
pub(crate) struct Detached {
    /// The holders that lost the volume by force.
    pub(crate) broken_holders: Vec<GuestHolder>,
    pub(crate) left_behind: Vec<LeftBehind>,
}

impl Detach<'_> {
    /// Detaches what exists; `request` is what the guest is asked to detach. Prints a warning for
    /// each part that stays in the container.
    ///
    /// # Errors
    /// Unless it is [`Error::Incomplete`], nothing has changed.
    pub(crate) async fn run(&mut self, request: Option<Detachment>) -> Result<Detached, Error> {
        let mut detached =
            Detached { left_behind: self.left_behind.clone(), ..Detached::default() };
        fault::point("before-detach").await?;
        let one = request.as_ref().filter(|request| request.keep_disk).map(|request| {
            (request.attachment.container_id.clone(), request.attachment.path.clone())
        });
        if let (Some(guest), Some(request)) = (self.guest, request) {
            if self.deadline.remaining().is_zero() {
                return Err(Error::TimedOut { what: "the guest".to_owned() });
            }
            self.log.step(|| format!("the guest detaches volume {}", self.id));
            match detach(guest, &request, self.force, Duration::ZERO, self.deadline).await {
                Ok(done) => detached = self.with_left_behind(done),
                Err(cause) => return Err(self.incomplete_unless_undone(cause).await),
            }
            fault::point("after-detach").await?;
            self.watch.lap("detach");
        }
        let removed = self.remove_from_qemu(one).await;
        self.watch.lap("remove");
        removed.map(|()| detached)
    }

    /// Adds what was left behind before. A guest that is asked again may name it again.
    fn with_left_behind(&self, done: Detached) -> Detached {
        let mut left_behind = self.left_behind.clone();
        let new = done.left_behind.into_iter().filter(|left| !self.left_behind.contains(left));
        left_behind.extend(new.inspect(|left| diagnostics::line(&left.to_string())));
        Detached { left_behind, ..done }
    }

    /// Returns `cause` if the guest's failure left everything as it was, and
    /// [`Error::Incomplete`] with this cause if not.
    async fn incomplete_unless_undone(&mut self, cause: Error) -> Error {
        let Some(left) = left_by(&cause, self.id) else { return cause };
        if !self.qemu_runs().await {
            return cause;
        }
        Error::Incomplete { cause: Box::new(cause), left: vec![left] }
    }

    /// Whether QEMU runs. If it has ended, the VM has ended with it, and nothing of any volume is
    /// left.
    async fn qemu_runs(&mut self) -> bool {
        let deadline = Deadline::after(LIVENESS_TIMEOUT);
        self.qmp.set_deadline(deadline);
        match self.qmp.execute("query-status", json!({})).await {
            Err(QmpError::Disconnected { .. }) => {
                self.qmp.close();
                rollback::is_alive(self.sandbox).await
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
            _ if self.is_abandoned => abandoned::remove(self.qmp, self.id, one).await?,
            Some((container, path)) => {
                removal::remove_attachment(self.qmp, self.id, container, path).await?;
            }
            None => removal::remove(self.qmp, self.id, Owner::Any, deadline).await?,
        }
        fault::point("after-remove").await?;
        // A stopped QEMU 7.2 replies that it removed a descriptor, and keeps it.
        let inventory = Inventory::read(self.qmp).await?;
        let left = match self.is_abandoned {
            true => inventory.abandoned(self.id),
            false => inventory.volume(self.id),
        };
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

/// What a failure of the guest left of a detachment; `None` if it left everything as it was.
pub(crate) fn left_by(cause: &Error, id: &VolumeId) -> Option<String> {
    let what = match cause {
        Error::Guest { undone: false, .. } => "has detached a part of it",
        Error::AgentLost { .. } | Error::AgentTimedOut { .. } => "may have detached it",
        _ => return None,
    };
    Some(format!("volume {id}: the guest {what}, QEMU still has it"))
}

/// Asks the guest to detach, again if the connection was lost: what is done is not done twice.
pub(crate) async fn detach(
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
