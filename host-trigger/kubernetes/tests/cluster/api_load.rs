//! What an API server has done: its own [metrics](https://kubernetes.io/docs/reference/instrumentation/metrics/),
//! and the processor time of its processes.

use std::{collections::BTreeMap, fs, time::Duration};

use kube::Client;
use vm_harness::ProcessStat;

use crate::api_server::ApiServer;

/// The load so far; the difference of two is that of a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct ApiLoad {
    /// Requests by verb and resource, such as `PATCH blockvolumeattachments/status`.
    pub(crate) requests: BTreeMap<String, f64>,
    /// Events of watches.
    pub(crate) events: f64,
    /// Their size in bytes.
    pub(crate) event_bytes: f64,
    /// Processor time of etcd and the API server.
    pub(crate) server: Duration,
    /// That of this process: the controller, the agents and the test itself.
    pub(crate) own: Duration,
}

impl ApiLoad {
    pub(crate) async fn now(server: &ApiServer, client: &Client) -> Self {
        let request = hyper::Request::get("/metrics").body(Vec::new()).unwrap();
        let text = client.request_text(request).await.unwrap();
        let mut load = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let value: f64 = value.parse().unwrap_or(0.0);
            let label = |label: &str| {
                let (_, rest) = name.split_once(&format!("{label}=\""))?;
                Some(rest.split_once('"')?.0.to_owned())
            };
            if name.starts_with("apiserver_request_total{") {
                let sub = label("subresource").filter(|sub| !sub.is_empty());
                let sub = sub.map(|sub| format!("/{sub}")).unwrap_or_default();
                let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else {
                    continue;
                };
                *load.requests.entry(format!("{verb} {resource}{sub}")).or_default() += value;
            } else if name.starts_with("apiserver_watch_events_total{") {
                load.events += value;
            } else if name.starts_with("apiserver_watch_events_sizes_sum{") {
                load.event_bytes += value;
            }
        }
        let time = |process| ProcessStat::of(process).and_then(|stat| stat.processor_time());
        load.server = server.processes().into_iter().filter_map(time).sum();
        load.own = time(std::process::id()).unwrap_or_default();
        load
    }

    /// What was done since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let change = |(name, count): (&String, &f64)| {
            let change = count - before.requests.get(name).unwrap_or(&0.0);
            (change > 0.0).then(|| (name.clone(), change))
        };
        Self {
            requests: self.requests.iter().filter_map(change).collect(),
            events: self.events - before.events,
            event_bytes: self.event_bytes - before.event_bytes,
            server: self.server.saturating_sub(before.server),
            own: self.own.saturating_sub(before.own),
        }
    }

    /// The requests that change something, and the others. Watches are neither: each is one request
    /// however long it is.
    pub(crate) fn writes_and_reads(&self) -> (f64, f64) {
        let mut sums = (0.0, 0.0);
        for (name, count) in &self.requests {
            match name.split(' ').next() {
                Some("GET" | "LIST") => sums.1 += count,
                Some("POST" | "PUT" | "PATCH" | "APPLY" | "DELETE") => sums.0 += count,
                _ => {}
            }
        }
        sums
    }
}

/// The memory of a process that is resident, in MiB.
pub(crate) fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) / 1024
}
