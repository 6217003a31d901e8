//! What the harness waits for, taken from its trace events ([`vm_harness::WAIT_EVENTS`]), for the
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

static CURRENT: Mutex<String> = Mutex::new(String::new());

/// A layer that receives the events.
pub(crate) struct WaitStatus;

/// Returns what the harness waits for now; empty before the first wait.
pub(crate) fn current() -> String {
    lock().clone()
}

impl<S: Subscriber> Layer<S> for WaitStatus {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == vm_harness::WAIT_EVENTS {
            event.record(&mut Recorder);
        }
    }
}

struct Recorder;

impl Visit for Recorder {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "awaited" {
            value.clone_into(&mut lock());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

fn lock() -> MutexGuard<'static, String> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn latest_wait_is_reported_and_other_events_are_ignored() {
        tracing::subscriber::with_default(tracing_subscriber::registry().with(WaitStatus), || {
            tracing::debug!(target: vm_harness::WAIT_EVENTS, awaited = "the first");
            tracing::debug!(target: vm_harness::WAIT_EVENTS, awaited = "the second");
            tracing::debug!(awaited = "of another target");
        });
        assert_eq!(current(), "the second");
    }
}
