//! An attach as a conversation with its caller: what the guest says, and the steps that it waits
//! for ([eventfd(2)](https://man7.org/linux/man-pages/man2/eventfd.2.html)).

use std::{
    os::fd::AsFd as _,
    sync::{Mutex, PoisonError},
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    attach::Attached,
    failed::Failed,
    guard::Guard,
    probe::Probed,
    stages::{Stages, Taken},
};
use crate::error::{BoxedError, Error, InvalidField, Result};

/// A step of the caller after the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Go,
    Commit,
    /// A step that is not one of these.
    Other,
}

/// What the guest says.
pub(crate) enum Said<'a> {
    Ready(&'a Probed),
    Prepared(&'a [Attached]),
    Attached(&'a [Attached]),
}

/// The steps that have arrived.
#[derive(Debug)]
pub(crate) struct Steps {
    arrived: Mutex<Vec<Step>>,
    news: EventFd,
}

impl Steps {
    /// # Errors
    /// The kernel refuses a descriptor.
    pub(crate) fn new() -> Result<Steps> {
        let news = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(Error::system("eventfd", &"a conversation"))?;
        Ok(Steps { arrived: Mutex::default(), news })
    }

    pub(crate) fn push(&self, step: Step) {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        // Only a counter that is never read could overflow.
        let _ = self.news.write(1);
    }

    fn take(&self) -> Option<Step> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        (!arrived.is_empty()).then(|| arrived.remove(0))
    }

    fn wait(&self, guard: &Guard<'_>, awaited: &'static str) -> Result<Step> {
        loop {
            if let Some(step) = self.take() {
                return Ok(step);
            }
            let waited = guard.wait(self.news.as_fd(), &|| awaited.to_owned());
            let _ = self.news.read();
            if let Err(error) = waited {
                // A step that arrived in the same moment counts: what the caller has committed is
                // not rolled back.
                return self.take().ok_or(error);
            }
        }
    }
}

/// The guest's side of a conversation.
pub(crate) struct Conversation<'a> {
    steps: &'a Steps,
    say: &'a dyn Fn(Said<'_>, &[Taken]),
}

impl<'a> Conversation<'a> {
    pub(crate) fn new(steps: &'a Steps, say: &'a dyn Fn(Said<'_>, &[Taken])) -> Conversation<'a> {
        Conversation { steps, say }
    }

    /// Says that nothing is in the way, and waits until the disks are there.
    pub(super) fn ready(
        &self,
        probed: &Probed,
        guard: &Guard<'_>,
        stages: &mut Stages,
    ) -> Result<(), Failed> {
        self.ask(Said::Ready(probed), "ready", Step::Go, guard, stages)?;
        Ok(stages.end("go")?)
    }

    /// Says what the caller will get.
    pub(super) fn prepared(
        &self,
        attached: &[Attached],
        stages: &mut Stages,
    ) -> Result<(), Failed> {
        (self.say)(Said::Prepared(attached), &stages.taken);
        Ok(stages.end("prepared")?)
    }

    /// Says that the volumes are usable, and waits until the caller has recorded it: from then on
    /// nothing is rolled back.
    pub(super) fn attached(
        &self,
        attached: &[Attached],
        guard: &Guard<'_>,
        stages: &mut Stages,
    ) -> Result<(), Failed> {
        self.ask(Said::Attached(attached), "attached", Step::Commit, guard, stages)?;
        let _ = stages.end("commit");
        Ok(())
    }

    fn ask(
        &self,
        said: Said<'_>,
        name: &'static str,
        expected: Step,
        guard: &Guard<'_>,
        stages: &mut Stages,
    ) -> Result<()> {
        // One that is early does not answer what is said now.
        if let Some(early) = self.steps.take() {
            return Err(out_of_order(early));
        }
        (self.say)(said, &stages.taken);
        stages.end(name)?;
        match self.steps.wait(guard, "the next step of the caller")? {
            step if step == expected => Ok(()),
            step => Err(out_of_order(step)),
        }
    }
}

#[cold]
fn out_of_order(step: Step) -> BoxedError {
    BoxedError::from(Error::InvalidRequest(Box::new(InvalidField {
        field: "step".to_owned(),
        value: format!("{step:?}"),
        rule: "must be `go` after `ready`, or `commit` after `attached`",
    })))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        thread,
        time::{Duration, Instant},
    };

    use super::{
        super::queue::{Queues, Ticket},
        *,
    };

    fn ticket() -> Ticket {
        Arc::<Queues>::default().announce(vec!["a".to_owned()]).join().unwrap()
    }

    fn guard(ticket: &Ticket, time: Duration) -> Guard<'_> {
        Guard { deadline: Instant::now() + time, ticket, jobs: &[] }
    }

    fn reason(result: Result<Step>) -> String {
        result.unwrap_err().to_string()
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_step_ends_the_wait_for_it() {
        let (steps, ticket) = (Steps::new().unwrap(), ticket());
        thread::scope(|scope| {
            let waiter = scope.spawn(|| steps.wait(&guard(&ticket, LONG), "a step"));
            steps.push(Step::Go);
            assert_eq!(waiter.join().unwrap().unwrap(), Step::Go);
        });
        assert_eq!(
            reason(steps.wait(&guard(&ticket, Duration::ZERO), "a step")),
            "timed out waiting for a step"
        );
    }

    #[test]
    fn steps_keep_their_order() {
        let (steps, ticket) = (Steps::new().unwrap(), ticket());
        steps.push(Step::Go);
        steps.push(Step::Commit);
        let next = || steps.wait(&guard(&ticket, LONG), "a step").unwrap();
        assert_eq!((next(), next()), (Step::Go, Step::Commit));
    }

    /// The caller may close the connection as soon as it has committed.
    #[test]
    fn a_commit_counts_although_the_caller_is_gone() {
        let (steps, ticket) = (Steps::new().unwrap(), ticket());
        drop(ticket.cancel_on_drop());
        steps.push(Step::Commit);
        assert_eq!(steps.wait(&guard(&ticket, Duration::ZERO), "a step").unwrap(), Step::Commit);
        let error = reason(steps.wait(&guard(&ticket, LONG), "a step"));
        assert_eq!(error, Error::Cancelled.to_string());
    }

    #[test]
    fn an_early_step_is_not_taken_for_an_answer() {
        let (steps, ticket) = (Steps::new().unwrap(), ticket());
        let said = |_: Said<'_>, _: &[Taken]| panic!("nothing is said");
        let (conversation, mut stages) = (Conversation::new(&steps, &said), Stages::new("attach"));
        steps.push(Step::Commit);
        let failed = conversation.attached(&[], &guard(&ticket, LONG), &mut stages).unwrap_err();
        assert!(failed.error.to_string().starts_with("step: Commit must be"), "{failed:?}");
    }
}
