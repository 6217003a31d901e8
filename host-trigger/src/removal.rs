//! The removal of one volume, from the guest and then from QEMU: what `hot-unplug` is, and what
//! `repair` does with much of what it finds. It goes by what is there, so that the same steps take
//! away a whole volume and what a killed run left of one.
//!
//! The guest comes first
//! ([`device_del`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-qdev.device_del)
//! of a SCSI disk is a surprise removal) and may refuse; then nothing has changed.

use std::time::Duration;

use block_volume_api::block_volume::{DetachRequest, Detachment};
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    Deadline, Error,
    agent::{self, Agent},
    fault,
    guest_holder::GuestHolder,
    output,
    printable::printable,
    reach::Guest,
    registry::Registry,
    sandbox::Place,
    stopwatch::Stopwatch,
    undo::{self, Whose},
    volume::VolumeId,
};
use block_volume_qmp::{Qmp, QmpError};

/// A QEMU that ended closes its connection at once; one that is stopped is there.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// The removal of one volume.
#[derive(Debug)]
pub(crate) struct Removal<'a> {
    pub(crate) place: &'a Place,
    pub(crate) verbose: bool,
    pub(crate) deadline: Deadline,
    pub(crate) watch: &'a mut Stopwatch,
    pub(crate) qmp: &'a mut Qmp,
    pub(crate) id: &'a VolumeId,
    /// `None`: it cannot have anything of the volume.
    pub(crate) guest: Option<&'a Guest>,
    /// Also from those who hold it in the guest.
    pub(crate) force: bool,
    /// How long they may take to let go of it.
    pub(crate) wait: Duration,
}

impl Removal<'_> {
    /// Takes away what is there; `question` is what the guest is asked to let go of. `impatient`
    /// ends a wait for those who hold it. Returns who lost the volume by force.
    ///
    /// # Errors
    /// Unless it is [`Error::Incomplete`], nothing has changed.
    pub(crate) async fn run(
        &mut self,
        question: Option<Detachment>,
        impatient: &Notify,
    ) -> Result<Vec<GuestHolder>, Error> {
        let mut broke = Vec::new();
        fault::point("before-detach").await?;
        let kept_for = question.as_ref().filter(|question| question.keep_disk).map(|question| {
            (question.attachment.container_id.clone(), question.attachment.path.clone())
        });
        if let (Some(guest), Some(question)) = (self.guest, question) {
            if self.deadline.remaining().is_zero() {
                return Err(Error::TimedOut { what: "the guest".to_owned() });
            }
            self.note(|| format!("the guest lets go of volume {}", self.id));
            let patient = detach(guest, &question, self.force, self.wait, self.deadline);
            let done = tokio::select! {
                done = patient => done,
                () = impatient.notified(), if !self.wait.is_zero() => {
                    detach(guest, &question, false, Duration::ZERO, self.deadline).await
                }
            };
            match done {
                Ok(holders) => broke = holders,
                Err(cause) => return Err(self.unless_undone(cause).await),
            }
            fault::point("after-detach").await?;
            self.watch.lap("detach");
        }
        let removed = self.remove_from_qemu(kept_for).await;
        self.watch.lap("remove");
        removed.map(|()| broke)
    }

    fn note(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            output::note(&printable(&text()));
        }
    }

    /// Did the guest's failure leave all as it was?
    async fn unless_undone(&mut self, cause: Error) -> Error {
        let what = match &cause {
            Error::Guest { undone: false, .. } => "has let go of a part of it",
            Error::AgentLost { .. } | Error::AgentTimedOut { .. } => "may have let go of it",
            _ => return cause,
        };
        if !self.qemu_is_there().await {
            return cause;
        }
        let left = vec![format!("volume {}: the guest {what}, QEMU still has it", self.id)];
        Error::Incomplete { cause: Box::new(cause), left }
    }

    /// With QEMU the VM is gone, and nothing is left of anything.
    async fn qemu_is_there(&mut self) -> bool {
        let deadline = Deadline::after(LAST_LOOK);
        self.qmp.set_deadline(deadline);
        match self.qmp.execute("query-status", json!({})).await {
            Err(QmpError::Disconnected { .. }) => {
                self.qmp.close();
                !matches!(undo::reconnect(self.place, deadline).await, Ok(None))
            }
            _ => true,
        }
    }

    /// `one`: only the use of this container at this path, as others go on.
    async fn remove_from_qemu(&mut self, one: Option<(String, String)>) -> Result<(), Error> {
        let one = one.as_ref().map(|(container, path)| (container.as_str(), path.as_str()));
        self.note(|| format!("QEMU lets go of volume {}", self.id));
        let deadline = self.deadline.max(Deadline::after(undo::LEAST_TIME));
        self.qmp.set_deadline(deadline);
        let mut removed = self.remove_once(one, deadline).await;
        if let Err(Error::Qmp(e)) = &removed
            && e.ends_connection()
        {
            self.note(|| "connecting to QEMU again".to_owned());
            self.qmp.close();
            removed = match undo::reconnect(self.place, deadline).await {
                Ok(Some(qmp)) => {
                    *self.qmp = qmp;
                    self.remove_once(one, deadline).await
                }
                // With QEMU the VM is gone, and all that it had.
                Ok(None) => return removed,
                Err(e) => Err(e),
            };
        }
        removed.map_err(|cause| Error::Incomplete {
            cause: Box::new(cause),
            left: vec![format!("volume {}: QEMU still has a part of it", self.id)],
        })
    }

    /// Removes what is there, and looks whether it is gone.
    async fn remove_once(
        &mut self,
        one: Option<(&str, &str)>,
        deadline: Deadline,
    ) -> Result<(), Error> {
        match one {
            Some((container, path)) => undo::remove_use(self.qmp, self.id, container, path).await?,
            None => undo::remove(self.qmp, self.id, Whose::Any, deadline).await?,
        }
        fault::point("after-remove").await?;
        // A stopped QEMU 7.2 says that it removed a descriptor, and keeps it.
        let left = Registry::read(self.qmp).await?.presence(self.id);
        let is_gone = match one {
            Some((container, path)) => !left.uses().iter().any(|used| used.is_at(container, path)),
            None => left.is_nothing(),
        };
        match is_gone {
            true => Ok(()),
            false => Err(Error::TimedOut { what: format!("QEMU to let go of volume {}", self.id) }),
        }
    }
}

/// Asks the guest, again where the connection was lost: a part that is done is not done twice.
/// Returns who lost the volume by force.
async fn detach(
    guest: &Guest,
    detachment: &Detachment,
    force: bool,
    wait: Duration,
    deadline: Deadline,
) -> Result<Vec<GuestHolder>, Error> {
    let patience = Deadline::after(wait);
    let request = || DetachRequest {
        detachments: vec![detachment.clone()],
        force,
        // A wait that the command line takes fits.
        wait_ms: u64::try_from(patience.remaining().as_millis()).unwrap_or(u64::MAX),
        ..Default::default()
    };
    let reply = match undo::ask(&guest.agent, request(), deadline).await {
        Err(Error::AgentLost { method }) => {
            let Ok(client) = agent::dial(&guest.address, deadline).await else {
                return Err(Error::AgentLost { method });
            };
            undo::ask(&Agent::new(client), request(), deadline).await
        }
        done => done,
    };
    Ok(GuestHolder::all(&reply?.holders))
}
