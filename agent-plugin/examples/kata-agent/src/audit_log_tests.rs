//! Tests of the bridge from the plugin's events to the agent's log.

use std::sync::{Arc, Mutex};

use slog::{o, Drain, Level, Logger, Never, OwnedKVList, Record, KV};
use tracing::{debug, error, info, info_span, warn, Subscriber};

use crate::block_volume::AuditLog;

/// A log at kata-agent's default level.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    pub(crate) fn logger(&self) -> Logger {
        Logger::root(self.clone().filter_level(Level::Info).fuse(), o!())
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// The values of a logger, without their names.
struct Values(String);

impl slog::Serializer for Values {
    fn emit_arguments(&mut self, _: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        self.0.push_str(&format!("{} ", value));
        Ok(())
    }
}

impl Drain for Lines {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let mut subsystem = Values(String::new());
        values.serialize(record, &mut subsystem).unwrap();
        let line = format!(
            "{} {}{}",
            record.level().as_short_str(),
            subsystem.0,
            record.msg()
        );
        self.0.lock().unwrap().push(line);
        Ok(())
    }
}

/// Emits events of the plugin and of others, and returns what reached the log.
fn logged(subscriber: impl Subscriber + Send + Sync) -> Vec<String> {
    let log = Lines::default();
    let emit = || {
        let span = info_span!(target: "agent_plugin::service", "a span", number = 1);
        let _inside = span.enter();
        let (reason, undone) = (Some(5), true);
        info!(target: "agent_plugin::service::audit", operation = "attach", about = %"c1", "done");
        info!(target: "agent_plugin::service", operation = "attach", ?reason, undone, message = "no");
        warn!(target: "agent_plugin::service::listener", cid = 7, "refused");
        error!(target: "agent_plugin", "failed");
        debug!(target: "agent_plugin::scsi", "scanned");
        info!(target: "kata_agent::rpc", "another");
    };
    slog_scope::scope(&log.logger(), || {
        tracing::subscriber::with_default(subscriber, emit)
    });
    log.lines()
}

const EXPECTED: [&str; 4] = [
    "INFO block-volume done operation=\"attach\" about=c1",
    "INFO block-volume operation=\"attach\" reason=Some(5) undone=true message=no",
    "WARN block-volume refused cid=7",
    "ERRO block-volume failed",
];

#[test]
fn the_plugins_events_reach_the_agents_log_at_its_default_level() {
    assert_eq!(logged(AuditLog), EXPECTED);
}

#[test]
fn they_also_reach_it_while_the_agent_traces() {
    assert_eq!(logged(crate::tracer::setup_tracing()), EXPECTED);
}
