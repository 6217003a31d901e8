//! The stages of an operation: the time that each took, and a fault point behind each.

use std::time::{Duration, Instant};

use crate::{error::Result, fault};

/// A stage, and the time that it took.
pub(crate) type Taken = (&'static str, Duration);

/// The time that each stage of an operation took.
#[derive(Debug)]
pub(crate) struct Stages {
    operation: &'static str,
    since: Instant,
    pub(crate) taken: Vec<Taken>,
}

impl Stages {
    pub(crate) fn new(operation: &'static str) -> Stages {
        Stages { operation, since: Instant::now(), taken: Vec::with_capacity(8) }
    }

    /// Ends a stage and begins the next one.
    pub(super) fn end(&mut self, stage: &'static str) -> Result<()> {
        let now = Instant::now();
        self.taken.push((stage, now.duration_since(self.since)));
        self.since = now;
        fault::after(self.operation, stage)
    }
}
