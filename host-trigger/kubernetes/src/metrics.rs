//! Counters for Prometheus.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// The last line of the text.
const END: &str = "# EOF\n";
/// Seconds: from a plug on an idle machine to one that waits for a lock.
const BUCKETS: [f64; 8] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    operation: &'static str,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    attachments: Family<StateLabel, Gauge>,
    seconds: Histogram,
    detached: Counter<u64, AtomicU64>,
    failures: Family<FailureLabels, Counter>,
    accepted: Family<ReasonLabel, Counter>,
    api_errors: Counter<u64, AtomicU64>,
    /// The counters of volumes, as text.
    volumes: Mutex<String>,
    /// Whether they were read since this was asked last.
    were_read: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("block_volume");
        let attachments = Family::default();
        let seconds = Histogram::new(BUCKETS);
        let (detached, api_errors) = (Counter::default(), Counter::default());
        let (failures, accepted) = (Family::default(), Family::default());
        registry.register(
            "attachments",
            "Attachments of this node by their state",
            attachments.clone(),
        );
        registry.register(
            "attach_seconds",
            "Time until a volume was attached by its node agent",
            seconds.clone(),
        );
        registry.register("detached", "Volumes that were detached", detached.clone());
        registry.register(
            "failures",
            "Attaches, detaches and readings of counters that failed, by their reason",
            failures.clone(),
        );
        registry.register(
            "decisions",
            "Decisions of the controller about attachments, by their reason",
            accepted.clone(),
        );
        registry.register(
            "api_errors",
            "Requests that the API server failed or refused",
            api_errors.clone(),
        );
        let (volumes, were_read) = (Mutex::default(), AtomicBool::default());
        Self {
            registry,
            attachments,
            seconds,
            detached,
            failures,
            accepted,
            api_errors,
            volumes,
            were_read,
        }
    }
}

impl Metrics {
    /// The text for Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        self.were_read.store(true, Ordering::Relaxed);
        let end = text.strip_suffix(END).map(str::len).unwrap_or(text.len());
        text.insert_str(end, &self.volumes.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }

    /// Whether somebody has read this since it was asked last.
    pub(crate) fn were_read(&self) -> bool {
        self.were_read.swap(false, Ordering::Relaxed)
    }

    /// Sets the counters of volumes, in the format of [`Self::text`].
    pub(crate) fn set_volumes(&self, page: String) {
        *self.volumes.lock().unwrap_or_else(PoisonError::into_inner) = page;
    }

    pub(crate) fn attached(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn detached(&self) {
        self.detached.inc();
    }

    pub(crate) fn failed(&self, operation: &'static str, reason: &str) {
        let labels = FailureLabels { operation, reason: reason.to_owned() };
        self.failures.get_or_create(&labels).inc();
    }

    pub(crate) fn accepted(&self, reason: &str) {
        self.accepted.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    pub(crate) fn api_error(&self) {
        self.api_errors.inc();
    }

    pub(crate) fn states(&self, attached: usize, others: usize) {
        for (state, count) in [("attached", attached), ("other", others)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.attachments.get_or_create(&StateLabel { state }).set(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_printed() {
        let metrics = Metrics::default();
        metrics.failed("attach", "Busy");
        metrics.states(2, 1);
        metrics.attached(Duration::from_millis(300));
        metrics.set_volumes("# TYPE x gauge\nx{} 1\n".to_owned());
        assert!(!metrics.were_read());
        let text = metrics.text();
        assert!(metrics.were_read() && !metrics.were_read());
        assert!(text.ends_with("x{} 1\n# EOF\n"), "{text}");
        for line in [
            "block_volume_failures_total{operation=\"attach\",reason=\"Busy\"} 1",
            "block_volume_attachments{state=\"attached\"} 2",
            "block_volume_attach_seconds_bucket{le=\"0.5\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is missing in\n{text}");
        }
    }
}
