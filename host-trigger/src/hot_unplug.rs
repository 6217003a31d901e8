//! `block-volume hot-unplug`: the sequence from a device in a container back to a free volume on the host.
//!
//! 1. Before anything changes: find the sandbox, lock it, find the volume in QEMU.
//! 2. The guest lets go of it (node, right, flush, disk), or refuses, because it is in use: then nothing has changed.
//! 3. QEMU's device, node and descriptors; the descriptors last, as they carry the record that a repetition needs.
//!
//! A removal that has begun is completed, also after a signal: what is half gone is of use to nobody. A wait for those who hold the
//! volume is no beginning: a signal ends it, by a request without patience, which the guest lets in before the patient one. What a killed run left of a
//! plug or an unplug is taken away in the same way, as far as it is there.

use std::{path::PathBuf, time::Duration};

use agent_plugin::contract::block_volume::{DetachRequest, Detachment};
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    Deadline, Error,
    agent::{self, Agent},
    choice,
    cli::HotUnplug,
    deadline::Stopwatch,
    fault,
    guest_holder::GuestHolder,
    lock,
    output::{self, Outcome, Report, SCHEMA, Timings, Volume},
    printable::printable,
    qmp::{Qmp, QmpError},
    reach::{Guest, Reached},
    registry::Registry,
    sandbox::Place,
    signals::Signals,
    survey::Subject,
    undo::{self, Whose},
    volume::VolumeId,
};

/// A QEMU that ended closes its connection at once; one that is stopped is there.
const LAST_LOOK: Duration = Duration::from_millis(500);

/// Runs the verb.
///
/// # Errors
/// The volume is not unplugged; unless it is [`Error::Incomplete`], nothing has changed.
pub async fn run(verb: &HotUnplug, run_dir: Option<PathBuf>) -> Result<Report, Error> {
    let mut watch = Stopwatch::new();
    let deadline = Deadline::after(verb.target.timeout);
    let mut signals = Signals::catch()?;
    choice::check(&verb.which)?;
    let place = Place::find(&verb.target.search(run_dir, verb.container.as_deref())?)?;
    watch.lap("find");
    let _lock = signals.unless_caught(lock::acquire(&place.lock_directory(), deadline)).await?;
    watch.lap("lock");

    let prepared = signals.unless_caught(prepare(verb, &place, deadline, &mut watch)).await?;
    let Some((mut removal, subject)) = prepared else { return Ok(report(Outcome::Unchanged, None, watch)) };

    let done = {
        let impatient = Notify::new();
        let mut work = std::pin::pin!(removal.run(subject.question, &impatient));
        tokio::select! {
            done = &mut work => done,
            interrupted = signals.next() => {
                note(verb, || "a removal that has begun is completed; a second signal ends it".to_owned());
                impatient.notify_one();
                tokio::select! {
                    done = &mut work => match done {
                        Err(Error::InUse { .. }) => Err(interrupted),
                        done => done,
                    },
                    _ = signals.next() => Err(Error::Incomplete {
                        cause: Box::new(interrupted),
                        left: vec!["a second signal ended the removal".to_owned()],
                    }),
                }
            }
        }
    };
    let broke = done?;
    Ok(Report { broke, ..report(Outcome::Detached, Some(subject.volume), removal.watch) })
}

fn note(verb: &HotUnplug, text: impl FnOnce() -> String) {
    if verb.target.verbose {
        output::note(&printable(&text()));
    }
}

/// Finds the volume, and the guest if it has to be asked. `None`: a volume that is named by its id is not there.
async fn prepare<'a>(
    verb: &'a HotUnplug,
    place: &'a Place,
    deadline: Deadline,
    watch: &mut Stopwatch,
) -> Result<Option<(Removal<'a>, Subject)>, Error> {
    let (mut qmp, registry, guest) = Reached::new(place, deadline).await?.split();
    let known = match choice::find(&verb.which, verb.container.as_deref(), place, &registry) {
        Err(Error::VolumeNotFound { .. }) if verb.which.volume.is_some() => return Ok(None),
        found => found?,
    };
    watch.lap("qemu");
    let (id, presence) = &known;
    if presence.intents.is_empty() {
        return Err(Error::RecordLost { volume: id.to_string() });
    }
    let id = id.clone();
    let subject = Subject::new(&mut qmp, &registry, &place.sandbox, known).await?;
    let guest = if subject.question.is_some() { Some(guest.await?) } else { None };
    watch.lap("prepare");
    let watch = std::mem::replace(watch, Stopwatch::new());
    let deadline = deadline.plus(verb.wait.unwrap_or_default());
    Ok(Some((Removal { verb, place, deadline, watch, qmp, id, guest }, subject)))
}

fn report(result: Outcome, volume: Option<Volume>, watch: Stopwatch) -> Report {
    Report {
        schema: SCHEMA,
        command: "hot-unplug".to_owned(),
        result,
        volumes: volume.into_iter().collect(),
        broke: Vec::new(),
        timings_us: Timings(watch.finish()),
    }
}

/// The removal of one volume.
struct Removal<'a> {
    verb: &'a HotUnplug,
    place: &'a Place,
    deadline: Deadline,
    watch: Stopwatch,
    qmp: Qmp,
    id: VolumeId,
    /// `None`: it cannot have anything of the volume.
    guest: Option<Guest>,
}

impl Removal<'_> {
    /// Returns who lost the volume by force.
    async fn run(
        &mut self,
        question: Option<Detachment>,
        impatient: &Notify,
    ) -> Result<Vec<GuestHolder>, Error> {
        fault::point("before-detach").await?;
        let mut broke = Vec::new();
        if let (Some(guest), Some(question)) = (&self.guest, question) {
            if self.deadline.remaining().is_zero() {
                return Err(Error::TimedOut { what: "the guest".to_owned() });
            }
            note(self.verb, || format!("the guest lets go of volume {}", self.id));
            let wait = self.verb.wait.unwrap_or_default();
            let patient = detach(guest, &question, self.verb.force, wait, self.deadline);
            let done = tokio::select! {
                done = patient => done,
                () = impatient.notified(), if !wait.is_zero() => {
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
        let removed = self.remove_from_qemu().await;
        self.watch.lap("remove");
        removed.map(|()| broke)
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

    async fn remove_from_qemu(&mut self) -> Result<(), Error> {
        note(self.verb, || format!("QEMU lets go of volume {}", self.id));
        let deadline = self.deadline.max(Deadline::after(undo::LEAST_TIME));
        self.qmp.set_deadline(deadline);
        let mut removed = self.remove_once(deadline).await;
        if let Err(Error::Qmp(e)) = &removed
            && e.ends_connection()
        {
            note(self.verb, || "connecting to QEMU again".to_owned());
            self.qmp.close();
            removed = match undo::reconnect(self.place, deadline).await {
                Ok(Some(qmp)) => {
                    self.qmp = qmp;
                    self.remove_once(deadline).await
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
    async fn remove_once(&mut self, deadline: Deadline) -> Result<(), Error> {
        undo::remove(&mut self.qmp, &self.id, Whose::Any, deadline).await?;
        fault::point("after-remove").await?;
        // A stopped QEMU 7.2 says that it removed a descriptor, and keeps it.
        if Registry::read(&mut self.qmp).await?.presence(&self.id).is_nothing() {
            return Ok(());
        }
        Err(Error::TimedOut { what: format!("QEMU to let go of volume {}", self.id) })
    }
}

/// Asks the guest, again where the connection was lost: a part that is done is not done twice. Returns who lost the volume by force.
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
