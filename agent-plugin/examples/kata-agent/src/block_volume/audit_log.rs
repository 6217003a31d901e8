//! Writes the plugin's events to the agent's log: slog's, which is at level info by default. The
//! plugin uses `tracing`, and kata-agent has a subscriber of that only with `agent.trace`.

use std::fmt::{self, Write};

use slog::{error, info, o, warn};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// A subscriber for the plugin's events alone. With `agent.trace` it is a layer of the agent's own.
pub(crate) struct AuditLog;

impl AuditLog {
    /// Begins to write, unless the agent has a subscriber, which has this layer.
    pub(super) fn start() {
        let _ = tracing::subscriber::set_global_default(AuditLog);
    }
}

fn is_of_the_plugin(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
        && *metadata.level() <= Level::INFO
        && metadata.target().starts_with("agent_plugin")
}

fn write(event: &Event<'_>) {
    let mut line = Line::default();
    event.record(&mut line);
    let log = slog_scope::logger().new(o!("subsystem" => "block-volume"));
    match *event.metadata().level() {
        Level::ERROR => error!(log, "{}", line.0),
        Level::WARN => warn!(log, "{}", line.0),
        _ => info!(log, "{}", line.0),
    }
}

impl Subscriber for AuditLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_of_the_plugin(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        write(event);
    }

    // Spans are not enabled.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl<S: Subscriber> Layer<S> for AuditLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if is_of_the_plugin(event.metadata()) {
            write(event);
        }
    }
}

/// An event as text: `done operation="attach" millis=21`. The plugin has escaped its values.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{}", value)),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match (self.0.is_empty(), field.name()) {
            (true, "message") => write!(self.0, "{:?}", value),
            (true, name) => write!(self.0, "{}={:?}", name, value),
            (false, name) => write!(self.0, " {}={:?}", name, value),
        };
    }
}
