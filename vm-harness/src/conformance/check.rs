//! A check: a small function with a name, a one-line purpose, and a word on when it applies.

use std::{fmt, pin::Pin};

use super::{Facts, Stage};

/// One check. It panics where the agent is wrong, and leaves the stage as it found it.
pub struct Check {
    name: &'static str,
    purpose: &'static str,
    gate: bool,
    applies: fn(&Facts) -> Result<(), String>,
    run: Run,
}

type Run = for<'a> fn(&'a Stage) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Checks of one subject, in their order.
#[derive(Debug)]
pub struct Group {
    /// The subject.
    pub name: &'static str,
    /// Its checks.
    pub checks: &'static [Check],
}

impl Check {
    pub(super) const fn new(name: &'static str, purpose: &'static str, run: Run) -> Self {
        Self { name, purpose, gate: false, applies: |_| Ok(()), run }
    }

    /// Without it, nothing that comes behind has a meaning.
    pub(super) const fn gate(mut self) -> Self {
        self.gate = true;
        self
    }

    /// Only where `applies` says so; else its reason is told.
    pub(super) const fn only_if(mut self, applies: fn(&Facts) -> Result<(), String>) -> Self {
        self.applies = applies;
        self
    }

    /// `group::what_is_so`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it proves, in a line.
    pub fn purpose(&self) -> &'static str {
        self.purpose
    }

    /// Whether the checks behind it depend on it.
    pub fn is_gate(&self) -> bool {
        self.gate
    }

    /// `Err` is the reason why it does not apply.
    pub(super) fn applies(&self, facts: &Facts) -> Result<(), String> {
        (self.applies)(facts)
    }

    pub(super) fn run<'a>(&self, stage: &'a Stage) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        (self.run)(stage)
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// `check!("group", function, "purpose")`
macro_rules! check {
    ($group:literal, $function:ident, $purpose:literal) => {
        $crate::conformance::Check::new(
            concat!($group, "::", stringify!($function)),
            $purpose,
            |stage| Box::pin($function(stage)),
        )
    };
}
pub(super) use check;
