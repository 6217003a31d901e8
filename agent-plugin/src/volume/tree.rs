//! Work of a detach in the trees of containers, which are not trusted: what they answer, and when,
//! must not decide whether the disk goes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    error::{Error, Result},
    fault,
    namespace::{NamespaceTask, Target},
};

/// A rollback gets at least this much time, whatever the deadline was.
const ROLLBACK: Duration = Duration::from_secs(1);

/// The trees of the containers of one request.
#[derive(Debug)]
pub(super) struct Trees {
    deadline: Instant,
    /// Containers that did not answer in time. They are not asked again.
    silent: Vec<Arc<str>>,
}

impl Trees {
    pub(super) fn new(deadline: Instant) -> Trees {
        Trees { deadline, silent: Vec::new() }
    }

    /// Until when a step may work in a tree: a quarter of what remains, so that the steps after it
    /// have time.
    pub(super) fn until(&self) -> Instant {
        let now = Instant::now();
        now + self.deadline.saturating_duration_since(now) / 4
    }

    /// Waits for a step in the tree of a container, until [`Trees::until`].
    pub(super) fn run<T: Send + 'static>(
        &mut self,
        target: &Target,
        start: impl FnOnce(Instant) -> Result<NamespaceTask<T>>,
    ) -> Result<T> {
        self.ask(target, |until| start(until)?.finish(until))
    }

    /// As [`Trees::run`], for a step that has its own task.
    pub(super) fn ask<T>(
        &mut self,
        target: &Target,
        step: impl FnOnce(Instant) -> Result<T>,
    ) -> Result<T> {
        if self.silent.contains(&target.id) {
            let awaited = format!("a file system of container {}", target.id);
            return Err(Error::TimedOut { awaited }.into());
        }
        let result = step(self.until());
        if result.as_ref().is_err_and(|error| error.is_time_out()) {
            self.silent.push(target.id.clone());
        }
        result
    }
}

/// Until when a rollback may work in a tree.
pub(super) fn rollback_until(deadline: Instant) -> Instant {
    deadline.max(Instant::now() + ROLLBACK)
}

/// Checks that the deadline has not passed, before a change.
pub(super) fn check_time(deadline: Instant, step: &str) -> Result<()> {
    if fault::now() < deadline {
        return Ok(());
    }
    Err(Error::TimedOut { awaited: format!("the detach to come to {step}") }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_use_up_their_time_leave_some_for_the_others() {
        let deadline = Instant::now() + Duration::from_secs(40);
        let left = deadline - Trees::new(deadline).until();
        assert!(left > Duration::from_secs(29), "{left:?}");
        let passed = Trees::new(Instant::now());
        assert!(passed.until() <= Instant::now());
    }

    #[test]
    fn nothing_is_changed_after_the_deadline() {
        check_time(Instant::now() + Duration::from_secs(10), "the flush").unwrap();
        let error = check_time(Instant::now(), "the flush").unwrap_err().to_string();
        assert_eq!(error, "timed out waiting for the detach to come to the flush");
    }
}
