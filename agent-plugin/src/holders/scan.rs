//! The result of a scan that has to end in time, and what the time was spent on.
//!
//! Anyone can make a scan of `/proc` long: thousands of processes with thousands of descriptors
//! each need no privilege. So every loop of a scan asks its [`Budget`] first.

use std::{
    fmt,
    time::{Duration, Instant},
};

use super::{disk::Disk, found::Found, process};
use crate::error::{Error, Result};

/// The holders that a scan found.
#[derive(Debug)]
#[must_use]
pub enum Scan {
    /// Everything was looked at.
    Complete(Vec<Found>),
    /// The deadline came first: there may be others.
    Partial(Vec<Found>, Cost),
}

impl Scan {
    /// What was found, complete or not.
    pub fn found(self) -> Vec<Found> {
        match self {
            Scan::Complete(found) | Scan::Partial(found, _) => found,
        }
    }

    /// What was found, to be changed.
    pub fn found_mut(&mut self) -> &mut Vec<Found> {
        match self {
            Scan::Complete(found) | Scan::Partial(found, _) => found,
        }
    }

    /// What was found; for each of `disks`, an unknown holder stands for what was not looked at.
    pub fn with_the_rest_unknown(self, disks: &[Disk]) -> Vec<Found> {
        match self {
            Scan::Complete(found) => found,
            Scan::Partial(mut found, cost) => {
                found.extend(disks.iter().map(|disk| Found::not_searched(disk, &cost)));
                found
            }
        }
    }

    /// What was found. One holder is enough to know that there are holders; that there is none is
    /// known only when everything was looked at.
    ///
    /// # Errors
    /// [`Error::TimedOut`], with the process that cost the most.
    pub fn certain(self) -> Result<Vec<Found>> {
        match self {
            Scan::Partial(found, cost) if found.is_empty() => Err(Error::TimedOut {
                awaited: format!("the search for holders of the disk{cost}"),
            }
            .into()),
            scan => Ok(scan.found()),
        }
    }
}

/// What a scan that did not end in time was spent on. As the name of a holder, that of the process
/// is escaped where it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The process that cost the most; `None` where no process was reached.
    worst: Option<Process>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: u32,
    command: String,
    container: String,
    spent: Spent,
}

/// What one process cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Spent {
    time: Duration,
    descriptors: usize,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Process { pid, command, container, spent }) = &self.worst else { return Ok(()) };
        let millis = spent.time.as_millis();
        write!(f, ", where process {pid} ({command})")?;
        if !container.is_empty() {
            write!(f, " in container {container}")?;
        }
        write!(f, " cost the most: {millis} ms for {} descriptors", spent.descriptors)
    }
}

/// The time that a scan has.
#[derive(Debug)]
pub(super) struct Budget {
    deadline: Instant,
    is_over: bool,
    /// By the process, in the order of their numbers.
    spent: Vec<(u32, Spent)>,
}

impl Budget {
    pub(super) fn until(deadline: Instant) -> Budget {
        Budget { deadline, is_over: false, spent: Vec::new() }
    }

    /// Whether there is time left. Whoever asks looks at something next: where the answer is no,
    /// the scan is not complete.
    pub(super) fn is_left(&mut self) -> bool {
        self.is_over |= Instant::now() >= self.deadline;
        !self.is_over
    }

    /// Notes what a look at a process cost.
    pub(super) fn spend(&mut self, pid: u32, since: Instant, descriptors: usize) {
        let at = match self.spent.binary_search_by_key(&pid, |(pid, _)| *pid) {
            Ok(at) => at,
            Err(at) => {
                self.spent.insert(at, (pid, Spent::default()));
                at
            }
        };
        let spent = &mut self.spent[at].1;
        spent.time += since.elapsed();
        spent.descriptors += descriptors;
    }

    /// The scan that ends now.
    pub(super) fn end(self, found: Vec<Found>) -> Scan {
        if !self.is_over {
            return Scan::Complete(found);
        }
        let worst = self.spent.into_iter().max_by_key(|(_, spent)| spent.time);
        let worst = worst.map(|(pid, spent)| Process {
            pid,
            command: process::command(pid),
            container: process::container(pid, &[]),
            spent,
        });
        Scan::Partial(found, Cost { worst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over() -> Budget {
        Budget::until(Instant::now())
    }

    #[test]
    fn a_scan_that_was_never_refused_time_is_complete() {
        let mut budget = Budget::until(Instant::now() + Duration::from_secs(3600));
        assert!(budget.is_left());
        assert!(matches!(budget.end(Vec::new()), Scan::Complete(_)));
        // Its deadline may have passed since it looked at the last one.
        assert!(matches!(over().end(Vec::new()), Scan::Complete(_)));
    }

    #[test]
    fn a_scan_that_ended_early_names_the_process_that_cost_the_most() {
        let mut budget = over();
        let began = Instant::now() - Duration::from_secs(2);
        budget.spend(std::process::id(), began, 4092);
        budget.spend(u32::MAX, Instant::now(), 1_000_000);
        assert!(!budget.is_left());
        let error = budget.end(Vec::new()).certain().unwrap_err().message();
        let process = format!(
            "timed out waiting for the search for holders of the disk, where process {} (",
            std::process::id()
        );
        assert!(error.starts_with(&process), "{error}");
        assert!(error.ends_with("ms for 4092 descriptors"), "{error}");
    }

    #[test]
    fn nothing_is_claimed_about_processes_that_were_not_reached() {
        let mut budget = over();
        assert!(!budget.is_left());
        let Scan::Partial(_, cost) = budget.end(Vec::new()) else { panic!("the time was over") };
        assert_eq!(cost.to_string(), "");
    }
}
