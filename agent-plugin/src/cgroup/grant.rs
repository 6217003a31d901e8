//! What was added to a device filter, for the rollback.

use std::fmt::Debug;

use crate::error::Result;

/// Access that was added to one part of a filter.
pub trait Added: Debug + Send + Sync {
    /// Removes it again.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    fn roll_back(&self) -> Result<()>;
}

/// What [`Filter::allow`](super::Filter::allow) did.
#[derive(Debug, Default)]
pub struct Grant {
    /// The container had the access from elsewhere: a wildcard, a rule of its specification, or its
    /// program.
    pub allowed_before: bool,
    /// What was added, also to the pod's group of v1. [`Grant::roll_back`] removes that entry
    /// immediately, when nothing else can depend on it; later another container may have the disk,
    /// too.
    pub added: Vec<Box<dyn Added>>,
}

impl Grant {
    /// Removes what was added. Continues after an error.
    ///
    /// # Errors
    /// The kernel refuses. A group that is gone is fine.
    pub fn roll_back(&self) -> Result<()> {
        self.added.iter().rev().map(|added| added.roll_back()).fold(Ok(()), Result::and)
    }
}
