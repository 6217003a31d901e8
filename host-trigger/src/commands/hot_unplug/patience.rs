//! `hot-unplug --wait`: the time for others to release the volume, and what is remembered of it
//! meanwhile. Others are the holders in the guest, and the block jobs and exports in QEMU. While
//! holders are awaited, the sandbox is not locked and QEMU not connected; while jobs are awaited,
//! another run that wants the lock gets it. So each wait ends with everything read anew: the volume
//! may be gone, or be another one.

use std::time::{Duration, Instant};

use block_volume_qmp::{Qmp, QmpError};

use super::Done;
use crate::{
    Deadline, Error, diagnostics,
    host::lock_watch::LockWatch,
    left_behind::LeftBehind,
    ops::{
        detach,
        holder_wait::{self, Pause, Waited},
        inspect::VolumeView,
        job_wait, rollback,
        session::{Guest, Session},
        signals::Signals,
        volume::Volume,
    },
    output::envelope::Outcome,
    qemu::volume_state::KnownVolume,
};

/// The time for others to release the volume.
#[derive(Debug)]
pub(super) struct Patience {
    wait: Duration,
    /// When it ends; it begins with the first wait.
    until: Option<Deadline>,
    /// The volume before the first wait.
    seen: Option<VolumeView>,
    /// The guest has detached the volume during a wait.
    detached: bool,
    /// What it left behind in the container then; warnings are printed.
    left_behind: Vec<LeftBehind>,
    /// Another request ended the last wait.
    ended: bool,
    /// Of the lock that this run has.
    watch: Option<LockWatch>,
    pause: Pause,
}

impl Patience {
    pub(super) fn new(wait: Option<Duration>) -> Self {
        Self {
            wait: wait.unwrap_or_default(),
            until: None,
            seen: None,
            detached: false,
            left_behind: Vec::new(),
            ended: false,
            watch: None,
            pause: Pause::new(),
        }
    }

    /// Begins to watch the lock, before anything is read: what opens its directory from now on is
    /// another run.
    ///
    /// # Errors
    /// It cannot be watched.
    pub(super) fn begin_turn(&mut self, session: &Session) -> Result<(), Error> {
        if !self.wait.is_zero() {
            self.watch = Some(LockWatch::new(&session.sandbox.lock_directory())?);
        }
        Ok(())
    }

    /// Finds the volume again after a wait. `None`: it has not been seen yet; `Some(None)`: it is
    /// gone.
    pub(super) fn find(&self, all: &[KnownVolume]) -> Option<Option<KnownVolume>> {
        let seen = self.seen.as_ref()?;
        let place = |known: &KnownVolume| {
            let intent = known.attachment.as_ref().map(|attachment| &attachment.intent);
            intent.map(|intent| (intent.container.clone(), intent.path.clone()))
        };
        let is_it =
            |known: &KnownVolume| known.id == seen.known.id && place(known) == place(&seen.known);
        Some(all.iter().find(|known| is_it(known)).cloned())
    }

    /// Checks that the volume is the one that was to be unplugged before the wait.
    ///
    /// # Errors
    /// Another run has plugged it again.
    pub(super) fn same(&self, view: &VolumeView) -> Result<(), Error> {
        let run =
            |view: &VolumeView| view.known.attachment.as_ref().map(|known| known.intent.clone());
        let is_same = |seen: &VolumeView| match (&seen.known.attachment, &view.known.attachment) {
            (Some(seen), Some(now)) => seen.is_same(now),
            (seen, now) => seen == now,
        };
        match &self.seen {
            // The record has the name of the run that plugged it. A run that took it without the
            // guest has moved the descriptors that carry the records.
            Some(seen) if view.known.state.is_abandoned && run(seen) == run(view) => Ok(()),
            Some(seen) if !is_same(seen) => {
                Err(Error::VolumeChanged { volume: view.known.id.to_string() })
            }
            _ => Ok(()),
        }
    }

    /// The result if the volume is gone: another run has unplugged it, or the guest has detached it
    /// for this one and another run has completed that.
    pub(super) fn gone(&self) -> Done {
        let result = if self.detached { Outcome::Detached } else { Outcome::Unchanged };
        let seen = self.seen.as_ref().filter(|_| self.detached);
        let left_behind = self.left_behind();
        let volume = seen.map(|seen| Volume { left_behind, ..seen.volume.clone() });
        Done { result, volume, broken_holders: Vec::new() }
    }

    /// What the guest left behind in the container when it detached the volume during a wait.
    pub(super) fn left_behind(&self) -> Vec<LeftBehind> {
        self.left_behind.clone()
    }

    /// Whether the guest is asked to detach before it is asked to wait. If another request ended
    /// its wait, one more would end that of another run.
    pub(super) fn asks_before_it_waits(&self) -> bool {
        !self.ended
    }

    /// The guest has not detached the volume because of holders.
    ///
    /// # Errors
    /// There is no time left to wait for them.
    pub(super) fn busy(&mut self, busy: Error) -> Result<(), Error> {
        self.detached = false;
        if self.begin().remaining().is_zero() { Err(busy) } else { Ok(()) }
    }

    /// What a failure means if the guest has detached the volume already.
    pub(super) fn failed(&self, cause: Error) -> Error {
        let is_explained = matches!(
            cause,
            Error::Incomplete { .. }
                | Error::NoQmpSocket { .. }
                | Error::SandboxStarting { .. }
                | Error::Qmp(QmpError::Connect { .. })
        );
        match &self.seen {
            Some(seen) if self.detached && !is_explained => {
                let left = format!(
                    "volume {}: the guest has detached it, QEMU still has it",
                    seen.known.id
                );
                Error::Incomplete { cause: Box::new(cause), left: vec![left] }
            }
            _ => cause,
        }
    }

    fn begin(&mut self) -> Deadline {
        *self.until.get_or_insert_with(|| Deadline::after(self.wait))
    }

    /// Waits until QEMU would release the block node, and then has the lock.
    ///
    /// # Errors
    /// It does not, in time: `in_use`; or a signal arrived.
    pub(super) async fn wait_for_node(
        &mut self,
        session: &mut Session,
        signals: &mut Signals,
        qmp: Qmp,
        view: &VolumeView,
        in_use: Error,
    ) -> Result<(), Error> {
        let until = self.begin();
        let Some(watch) = self.watch.take().filter(|_| !until.remaining().is_zero()) else {
            return Err(self.failed(in_use));
        };
        self.seen.get_or_insert_with(|| view.clone());
        session.log.step(|| format!("waiting: {}", in_use.message()));
        let began = Instant::now();
        let waited =
            signals.unless_caught(job_wait::wait(session, qmp, &watch, &view.known.id, until));
        let waited = waited.await;
        self.go_on(session, signals, began, "wait_for_node", waited).await
    }

    /// Waits until the holders in the guest have released the volume, and then has the lock. The
    /// connection to QEMU is closed.
    ///
    /// # Errors
    /// They keep it, the guest refuses or does not reply, or a signal arrived.
    pub(super) async fn wait_for_holders(
        &mut self,
        session: &mut Session,
        signals: &mut Signals,
        guest: Option<&Guest>,
        view: &VolumeView,
    ) -> Result<(), Error> {
        let until = self.begin();
        self.seen.get_or_insert_with(|| view.clone());
        let (Some(guest), Some(request)) = (guest, &view.request) else { return Ok(()) };
        drop(session.unlock());
        session.log.step(|| "waiting for the holders; other runs go on".to_owned());
        let (began, deadline) = (Instant::now(), session.deadline.plus(until.remaining()));
        let waited = {
            let wait = holder_wait::wait(guest, request, &mut self.pause, until, deadline);
            let mut wait = std::pin::pin!(wait);
            tokio::select! {
                waited = &mut wait => waited,
                interrupted = signals.next() => {
                    // The guest serves it before the one that waits, and says what has been done.
                    match detach::detach(guest, request, false, Duration::ZERO, deadline).await {
                        Err(busy) if holder_wait::is_busy(&busy) => Err(interrupted),
                        done => done.map(|done| Waited::Detached(done.left_behind)),
                    }
                }
            }
        };
        self.ended = matches!(waited, Ok(Waited::Ended));
        match waited {
            Ok(Waited::Ended) => {}
            Ok(Waited::Detached(left_behind)) => {
                self.detached = true;
                left_behind.iter().for_each(|left| diagnostics::line(&left.to_string()));
                self.left_behind.extend(left_behind);
            }
            Err(cause) => {
                let left = detach::left_by(&cause, &view.known.id);
                return Err(match left {
                    Some(left) if rollback::is_alive(&session.sandbox).await => {
                        Error::Incomplete { cause: Box::new(cause), left: vec![left] }
                    }
                    _ => cause,
                });
            }
        }
        self.go_on(session, signals, began, "wait_for_holders", Ok(())).await
    }

    /// Continues after a wait: the time for the whole command begins to run again.
    async fn go_on(
        &self,
        session: &mut Session,
        signals: &mut Signals,
        began: Instant,
        lap: &str,
        waited: Result<(), Error>,
    ) -> Result<(), Error> {
        session.deadline = session.deadline.plus(began.elapsed());
        session.watch.lap(lap);
        waited.map_err(|e| self.failed(e))?;
        let locked = session.lock_again(session.deadline);
        signals.unless_caught(locked).await.map_err(|e| self.failed(e))
    }
}
