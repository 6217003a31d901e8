//! The stub's `tracer.rs`: the subscriber that kata-agent has with `agent.trace`.

use tracing::Subscriber;
use tracing_subscriber::layer::{Identity, SubscriberExt};
use tracing_subscriber::Registry;

/// Returns the subscriber. (kata-agent makes it the global one here, and has another layer.)
pub(crate) fn setup_tracing() -> Box<dyn Subscriber + Send + Sync> {
    let layer = Identity::new();

    let subscriber = Registry::default().with(layer);
    #[cfg(feature = "block-volume")]
    let subscriber = subscriber.with(crate::block_volume::AuditLog);

    Box::new(subscriber)
}
