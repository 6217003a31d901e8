//! What all connections of a proxy share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{rule::Rules, traffic::Traffic};

/// The record and the rules.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) traffic: Traffic,
    rules: Mutex<Rules>,
}

impl Shared {
    pub(super) fn new(traffic: Traffic, rules: Rules) -> Self {
        Self { traffic, rules: Mutex::new(rules) }
    }

    pub(super) fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
