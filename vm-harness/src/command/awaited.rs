//! What the harness waits for, as its trace events tell it ([`vm_harness::AWAITS`]), for the
//! progress line.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

static NOW: Mutex<String> = Mutex::new(String::new());

/// Listens to the events.
pub(crate) struct Awaited;

/// What is awaited now; empty before the first wait.
pub(crate) fn now() -> String {
    lock().clone()
}

impl<S: Subscriber> Layer<S> for Awaited {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == vm_harness::AWAITS {
            event.record(&mut Note);
        }
    }
}

struct Note;

impl Visit for Note {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "awaited" {
            value.clone_into(&mut lock());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

fn lock() -> MutexGuard<'static, String> {
    NOW.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn the_latest_wait_is_told_and_nothing_else() {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Awaited), || {
            tracing::debug!(target: vm_harness::AWAITS, awaited = "the first");
            tracing::debug!(target: vm_harness::AWAITS, awaited = "the second");
            tracing::debug!(awaited = "of somebody else");
        });
        assert_eq!(now(), "the second");
    }
}
