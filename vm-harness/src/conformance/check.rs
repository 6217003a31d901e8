//! A check: a small function with a name, a purpose of one line, what a developer whose agent fails
//! it should know, and a condition when it applies.

use std::{fmt, pin::Pin};

use super::{Fixture, GuestInfo};

/// One check. It panics if the agent is wrong, and restores the state of the fixture.
pub struct Check {
    name: &'static str,
    purpose: &'static str,
    breaks: &'static str,
    look: &'static str,
    gate: bool,
    applies: fn(&GuestInfo) -> Result<(), String>,
    run: Run,
}

type Run = for<'a> fn(&'a Fixture) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// The checks of one subject, in their order.
#[derive(Debug)]
pub struct Group {
    /// The subject.
    pub name: &'static str,
    /// Its checks.
    pub checks: &'static [Check],
}

impl Check {
    pub(super) const fn new(
        name: &'static str,
        [purpose, breaks, look]: [&'static str; 3],
        run: Run,
    ) -> Self {
        Self { name, purpose, breaks, look, gate: false, applies: |_| Ok(()), run }
    }

    /// Makes it a gate: if it fails, the checks after it are not run.
    pub(super) const fn gate(mut self) -> Self {
        self.gate = true;
        self
    }

    /// Runs it only if `applies` returns `Ok`; otherwise the report has the reason.
    pub(super) const fn only_if(mut self, applies: fn(&GuestInfo) -> Result<(), String>) -> Self {
        self.applies = applies;
        self
    }

    /// Returns `group::what_holds`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns what it proves, in one line.
    pub fn purpose(&self) -> &'static str {
        self.purpose
    }

    /// Returns what usually breaks it, in a few sentences.
    pub fn breaks(&self) -> &'static str {
        self.breaks
    }

    /// Returns where to look if it fails.
    pub fn look(&self) -> &'static str {
        self.look
    }

    /// Whether the checks after it depend on it.
    pub fn is_gate(&self) -> bool {
        self.gate
    }

    /// Returns the reason as `Err` if it does not apply.
    pub(super) fn applies(&self, info: &GuestInfo) -> Result<(), String> {
        (self.applies)(info)
    }

    pub(super) fn run<'a>(&self, fixture: &'a Fixture) -> Pin<Box<dyn Future<Output = ()> + 'a>> {
        (self.run)(fixture)
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// `check!("group", function, "purpose", breaks: "what usually breaks it", look: "where to look")`
macro_rules! check {
    ($group:literal, $function:ident, $purpose:literal, breaks: $breaks:literal, look: $look:literal) => {
        $crate::conformance::Check::new(
            concat!($group, "::", stringify!($function)),
            [$purpose, $breaks, $look],
            |fixture| Box::pin($function(fixture)),
        )
    };
}
pub(super) use check;
