//! Detaches one volume, from the guest and then from QEMU: `hot-unplug`, and much of what `repair`
//! does. It goes by what exists, so the same steps detach a whole volume and what an interrupted
//! run left of one.
//!
//! The guest comes first
//! ([`device_del`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-qdev.device_del)
//! of a SCSI disk is a surprise removal) and may refuse; then nothing has changed. Once it has
//! released the disk, it sends no command to it any more: QEMU removes the device while the guest
//! removes the disk. The rest is removed from QEMU when both are done.

use std::time::Duration;

use block_volume_api::block_volume::{DetachRequest, DetachResponse, Detachment, Stage};
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
    kata::{agent::Agent, agent_address, sandbox::Sandbox, unplug_stream::UnplugStep},
    left_behind::LeftBehind,
    qemu::{
        abandoned,
        inventory::Inventory,
        removal::{self, Owner, Removal},
    },
    sanitize::sanitize,
    stopwatch::Stopwatch,
    volume_id::VolumeId,
};

/// So many stages of the guest are shown, at most.
const MAX_STAGES: usize = 32;

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
    /// The stages in the guest, and their times.
    stages: Vec<(String, Duration)>,
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
        let mut removed_device = None;
        fault::point("before-detach").await?;
        let one = request.as_ref().filter(|request| request.keep_disk).map(|request| {
            (request.attachment.container_id.clone(), request.attachment.path.clone())
        });
        if let (Some(guest), Some(request)) = (self.guest, request) {
            if self.deadline.remaining().is_zero() {
                return Err(Error::TimedOut { what: "the guest".to_owned() });
            }
            self.log.step(|| format!("the guest detaches volume {}", self.id));
            let (asked, device) = self.ask(guest, &request).await;
            removed_device = device;
            match asked {
                Ok(done) => detached = self.with_left_behind(done),
                Err(cause) => {
                    return Err(self.incomplete_unless_undone(cause, removed_device).await);
                }
            }
            fault::point("after-detach").await?;
            self.watch.lap("detach");
            for (stage, time) in std::mem::take(&mut detached.stages) {
                self.watch.record(stage, time);
            }
        }
        let removed = self.remove_from_qemu(one, removed_device).await;
        self.watch.lap("remove");
        removed.map(|()| detached)
    }

    /// Asks the guest to detach. Returns also what came of the removal of QEMU's device, and what
    /// is left to remove then; `None`: it has not begun.
    async fn ask(
        &mut self,
        guest: &Guest,
        request: &Detachment,
    ) -> (Result<Detached, Error>, Option<Result<Option<Removal>, Error>>) {
        let deadline = self.deadline;
        // The guest says nothing before the end of a disk that it keeps, or that is taken from its
        // holders.
        if request.keep_disk || self.force {
            return (detach(guest, request, self.force, Duration::ZERO, deadline).await, None);
        }
        let all = DetachRequest { detachments: vec![request.clone()], ..Default::default() };
        let asked = async {
            let mut stream = guest_request::send_unplug(&guest.agent, all, deadline).await?;
            let step = stream.next(deadline).await?;
            Ok((stream, step))
        };
        let mut stream = match asked.await {
            Ok((stream, UnplugStep::Released(serials)))
                if serials.iter().any(|serial| serial == self.id.as_str()) =>
            {
                stream
            }
            Ok((mut stream, UnplugStep::Released(_))) => {
                return (stream.last(deadline).await.map(Detached::from), None);
            }
            Ok((_, UnplugStep::Detached(reply))) => return (Ok(reply.into()), None),
            // An agent of an earlier version.
            Err(Error::NoMethod { .. }) => {
                return (detach(guest, request, false, Duration::ZERO, deadline).await, None);
            }
            Err(lost @ Error::AgentLost { .. }) => {
                return (settle(guest, request, deadline, lost).await, None);
            }
            Err(e) => return (Err(e), None),
        };
        self.watch.lap("release");
        if let Err(e) = fault::point("after-released").await {
            return (Err(e), Some(Ok(None)));
        }
        self.log.step(|| "the guest has released it; QEMU removes its device".to_owned());
        let until = deadline.max(Deadline::after(ROLLBACK_TIME));
        self.qmp.set_deadline(until);
        let in_guest = async {
            match stream.last(deadline).await {
                Err(lost @ Error::AgentLost { .. }) => settle(guest, request, deadline, lost).await,
                reply => reply.map(Detached::from),
            }
        };
        let (asked, device) = tokio::join!(in_guest, removal::begin(self.qmp, self.id, until));
        (asked, Some(device.map(Some)))
    }

    /// Adds what was left behind before. A guest that is asked again may name it again.
    fn with_left_behind(&self, done: Detached) -> Detached {
        let mut left_behind = self.left_behind.clone();
        let new = done.left_behind.into_iter().filter(|left| !self.left_behind.contains(left));
        left_behind.extend(new.inspect(|left| diagnostics::line(&left.to_string())));
        Detached { left_behind, ..done }
    }

    /// Returns `cause` if the guest's failure left everything as it was, and
    /// [`Error::Incomplete`] with this cause if not: after `device` was removed, nothing is.
    async fn incomplete_unless_undone(
        &mut self,
        cause: Error,
        device: Option<Result<Option<Removal>, Error>>,
    ) -> Error {
        let left = match device {
            Some(_) => Some(format!(
                "volume {}: the guest has released it, and may still have its disk; QEMU still has \
                 a part of it",
                self.id
            )),
            None => left_by(&cause, self.id),
        };
        let Some(left) = left else { return cause };
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
    /// path. `device`: what came of the removal of the device, if it was begun before.
    async fn remove_from_qemu(
        &mut self,
        one: Option<(String, String)>,
        device: Option<Result<Option<Removal>, Error>>,
    ) -> Result<(), Error> {
        let one = one.as_ref().map(|(container, path)| (container.as_str(), path.as_str()));
        self.log.step(|| format!("QEMU removes volume {}", self.id));
        let deadline = self.deadline.max(Deadline::after(ROLLBACK_TIME));
        self.qmp.set_deadline(deadline);
        let mut removed = match device {
            Some(Err(e)) => Err(e),
            Some(Ok(Some(left))) if !self.is_abandoned => self.remove_left(&left, deadline).await,
            Some(Ok(_)) | None => self.try_remove(one, deadline).await,
        };
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

    /// Removes what is left after the device.
    async fn remove_left(&mut self, left: &Removal, deadline: Deadline) -> Result<(), Error> {
        left.run(self.qmp, deadline).await?;
        fault::point("after-remove").await
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
            // It makes sure by itself that everything is gone.
            None => {
                removal::remove(self.qmp, self.id, Owner::Any, deadline).await?;
                return fault::point("after-remove").await;
            }
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

impl From<DetachResponse> for Detached {
    fn from(reply: DetachResponse) -> Self {
        Self {
            broken_holders: GuestHolder::from_reply(&reply.holders),
            left_behind: LeftBehind::from_reply(&reply.left_behind),
            stages: reply.stages.iter().take(MAX_STAGES).map(stage).collect(),
        }
    }
}

fn stage(stage: &Stage) -> (String, Duration) {
    (format!("guest_{}", sanitize(&stage.name)), Duration::from_micros(stage.micros))
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
        Err(lost @ Error::AgentLost { .. }) => send_again(guest, request(), deadline, lost).await,
        done => done,
    };
    reply.map(Detached::from)
}

/// Finds out what has become of a request of which the connection was lost, by asking again: what
/// is done is not done twice.
async fn settle(
    guest: &Guest,
    detachment: &Detachment,
    deadline: Deadline,
    lost: Error,
) -> Result<Detached, Error> {
    let request = DetachRequest { detachments: vec![detachment.clone()], ..Default::default() };
    send_again(guest, request, deadline, lost).await.map(Detached::from)
}

/// Sends a request on a new connection; if there is none, the error is `lost`.
async fn send_again(
    guest: &Guest,
    request: DetachRequest,
    deadline: Deadline,
    lost: Error,
) -> Result<DetachResponse, Error> {
    let Ok(client) = agent_address::dial(&guest.address, deadline).await else { return Err(lost) };
    guest_request::send_detach(&Agent::new(client), request, deadline).await
}
