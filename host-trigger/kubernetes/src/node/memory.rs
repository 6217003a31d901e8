//! What was done last for each attachment. A change of its status by the node agent itself, or a
//! repeated event, is no reason to work again; the time of the next work stays as it was.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::resource::{
    BlockVolumeAttachment, ConditionType, ControllerStatus, FORCE_ANNOTATION, Truth,
};

/// The first wait after a failure that may pass; it doubles with each one.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The longest wait after a failure, and the wait after one that stays.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// How often a volume that is attached is checked.
const CHECK: Duration = Duration::from_secs(600);

/// What the work on an attachment depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    generation: Option<i64>,
    is_deleted: bool,
    assignment: ControllerStatus,
    accepted: Option<Truth>,
    source_ready: Option<Truth>,
    force: Option<String>,
}

impl Cause {
    pub(super) fn of(attachment: &BlockVolumeAttachment) -> Self {
        let truth = |condition| attachment.condition(condition).map(|one| one.status);
        let annotations = attachment.metadata.annotations.as_ref();
        Self {
            generation: attachment.metadata.generation,
            is_deleted: attachment.metadata.deletion_timestamp.is_some(),
            assignment: attachment.assignment(),
            accepted: truth(ConditionType::Accepted),
            source_ready: truth(ConditionType::SourceReady),
            force: annotations.and_then(|all| all.get(FORCE_ANNOTATION)).cloned(),
        }
    }
}

/// How the last work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The volume is attached.
    Attached,
    /// Nothing is attached, as it should be.
    Detached,
    /// It failed, and may pass.
    Passes,
    /// It failed, and needs a change.
    Stays,
}

#[derive(Debug)]
struct Known {
    cause: Cause,
    failures: u32,
    next: Option<Instant>,
}

/// What was done last, by the UID of the attachment.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<HashMap<String, Known>>);

impl Memory {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time until there is work for this cause; zero if there is some now, and `None` if a
    /// change has to come first.
    pub(super) fn wait(&self, uid: &str, cause: &Cause, now: Instant) -> Option<Duration> {
        match self.known().get(uid).filter(|known| known.cause == *cause) {
            Some(known) => known.next.map(|next| next.saturating_duration_since(now)),
            None => Some(Duration::ZERO),
        }
    }

    /// Notes how the work ended. Returns the time until the next one.
    pub(super) fn note(
        &self,
        uid: &str,
        cause: Cause,
        ended: Ended,
        now: Instant,
    ) -> Option<Duration> {
        let mut all = self.known();
        let former = all.get(uid).filter(|known| known.cause == cause);
        let failures = match ended {
            Ended::Passes => former.map_or(0, |known| known.failures).saturating_add(1),
            Ended::Attached | Ended::Detached | Ended::Stays => 0,
        };
        let wait = match ended {
            Ended::Attached => Some(CHECK),
            Ended::Detached => None,
            Ended::Stays => Some(LONGEST_WAIT),
            Ended::Passes => {
                let factor = 1 << (failures - 1).min(10);
                Some(LONGEST_WAIT.min(FIRST_WAIT * factor))
            }
        };
        all.insert(uid.to_owned(), Known { cause, failures, next: wait.map(|wait| now + wait) });
        wait
    }

    /// Forgets what was done last: there is work with the next event.
    pub(super) fn forget(&self, uid: &str) {
        self.known().remove(uid);
    }

    /// Forgets what is not in `uids`.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.known().retain(|uid, _| is_there(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn the_same_cause_is_no_reason_to_work_again() {
        let (memory, now) = (Memory::default(), Instant::now());
        let cause = Cause::of(&sample::attachment());
        assert_eq!(memory.wait("u", &cause, now), Some(Duration::ZERO));
        memory.note("u", cause.clone(), Ended::Attached, now);
        assert_eq!(memory.wait("u", &cause, now), Some(CHECK));
        let mut changed = sample::attachment();
        changed.metadata.generation = Some(2);
        assert_eq!(memory.wait("u", &Cause::of(&changed), now), Some(Duration::ZERO));
        memory.forget("u");
        assert_eq!(memory.wait("u", &cause, now), Some(Duration::ZERO));
        memory.note("u", cause.clone(), Ended::Attached, now);
        memory.retain(|_| false);
        assert_eq!(memory.wait("u", &cause, now), Some(Duration::ZERO));
    }

    #[test]
    fn the_wait_after_failures_doubles_up_to_its_end() {
        let (memory, now) = (Memory::default(), Instant::now());
        let cause = Cause::of(&sample::attachment());
        let wait = || memory.note("u", cause.clone(), Ended::Passes, now).unwrap().as_secs();
        assert_eq!([wait(), wait(), wait()], [5, 10, 20]);
        for _ in 0..40 {
            wait();
        }
        assert_eq!(wait(), 300);
        assert_eq!(memory.note("u", cause.clone(), Ended::Detached, now), None);
        assert_eq!(memory.wait("u", &cause, now), None);
    }
}
