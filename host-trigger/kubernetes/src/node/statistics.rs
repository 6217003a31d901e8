//! The counters of attached volumes, for Prometheus: as `ecr-runtime block-volume stats
//! --prometheus` has them, with the names of the attachment. They are read at an interval, and only
//! if they were asked for since: a scrape waits for no sandbox, and a node that nobody scrapes
//! takes no lock and wakes no guest.

use std::{collections::HashMap, sync::Arc, time::Duration};

use host_trigger::{
    output::{
        prometheus::{self, Labels, TextFormat},
        stats_report::VolumeStats,
    },
    pod::PodName,
};
use kube::{ResourceExt as _, runtime::reflector::Store};
use tokio::time::MissedTickBehavior;

use super::host::Host;
use crate::{
    metrics::Metrics,
    resource::{BlockVolumeAttachment, ConditionType},
};

/// How often they are read.
const INTERVAL: Duration = Duration::from_secs(15);

/// A volume whose counters are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedVolume {
    /// The name of the attachment, in the namespace of the pod.
    pub name: String,
    /// The pod.
    pub pod: PodName,
    /// Its UID.
    pub pod_uid: String,
    /// The ID of the volume.
    pub id: String,
    /// The path in the container.
    pub path: String,
}

impl CountedVolume {
    /// The volume of an attachment that is attached.
    fn of(attachment: &BlockVolumeAttachment) -> Option<Self> {
        let (namespace, name) = (attachment.namespace()?, attachment.spec.pod_name.clone());
        let (assignment, observed) = (attachment.assignment(), attachment.observed());
        attachment.is(ConditionType::Attached).then_some(())?;
        Some(Self {
            name: attachment.name_any(),
            pod: PodName { namespace, name },
            pod_uid: assignment.pod_uid?,
            id: observed.volume_id?,
            path: attachment.spec.path().to_owned(),
        })
    }
}

/// Reads them again and again, for as long as it is polled.
pub(super) async fn keep_reading<H: Host>(
    host: &H,
    all: &Store<BlockVolumeAttachment>,
    metrics: &Arc<Metrics>,
) {
    let mut turns = tokio::time::interval(INTERVAL);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        if metrics.were_read() {
            let wanted = all.state().iter().filter_map(|one| CountedVolume::of(one)).collect();
            read(host, wanted, metrics).await;
        }
    }
}

async fn read<H: Host>(host: &H, wanted: Vec<CountedVolume>, metrics: &Metrics) {
    let counted = host.statistics(wanted.clone()).await;
    let mut all = Vec::new();
    for pod in counted {
        match pod {
            Ok(volumes) => all.extend(volumes),
            Err(failure) => metrics.failed("statistics", &failure.reason),
        }
    }
    metrics.set_volumes(page(&wanted, all));
}

/// The counters of the volumes that are `wanted`, and of no others that their pods have.
fn page(wanted: &[CountedVolume], mut counted: Vec<VolumeStats>) -> String {
    let wanted: HashMap<_, _> = wanted.iter().map(|one| (one.id.as_str(), one)).collect();
    let is_wanted = |stats: &VolumeStats| {
        wanted.get(stats.id.as_str()).is_some_and(|one| one.path == stats.place.path())
    };
    counted.retain(is_wanted);
    let labels = |stats: &VolumeStats| -> Labels {
        let Some(one) = wanted.get(stats.id.as_str()) else { return Labels::new() };
        vec![("namespace", one.pod.namespace.clone()), ("name", one.name.clone())]
    };
    prometheus::page(&counted, TextFormat::OpenMetrics, &labels)
}

#[cfg(test)]
mod tests {
    use host_trigger::ops::place::Place;
    use serde_json::json;

    use super::*;
    use crate::sample;

    fn stats(id: &str, path: &str) -> VolumeStats {
        VolumeStats {
            id: id.to_owned(),
            sandbox: "s1".to_owned(),
            container: "c1".to_owned(),
            pod: None,
            place: Place::Device { device_path: path.to_owned() },
            size: 4096,
            qemu: None,
            container_state: None,
            file_system: None,
            guest: None,
            guest_error: None,
        }
    }

    fn attached() -> BlockVolumeAttachment {
        let mut attachment = sample::attachment();
        attachment.status = sample::object(json!({
            "podUID": "u1", "volumeID": "v1",
            "conditions": [{
                "type": "Attached", "status": "True", "reason": "Attached", "message": "",
                "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }));
        attachment
    }

    #[test]
    fn what_is_attached_is_counted_by_the_names_of_its_attachment() {
        assert_eq!(CountedVolume::of(&sample::attachment()), None);
        let wanted = CountedVolume::of(&attached()).unwrap();
        assert_eq!((wanted.pod_uid.as_str(), wanted.id.as_str()), ("u1", "v1"));
        let others = [stats("v2", "/dev/xvda"), stats("v1", "/dev/other")];
        let counted = others.into_iter().chain([stats("v1", "/dev/xvda")]).collect();
        let text = page(&[wanted], counted);
        let size = "ecr_block_volume_size_bytes{sandbox=\"s1\",container=\"c1\",volume=\"v1\",\
                    device_path=\"/dev/xvda\",namespace=\"db\",name=\"scratch\"} 4096";
        assert_eq!(text.lines().filter(|line| line.contains("_size_bytes{")).count(), 1, "{text}");
        assert!(text.lines().any(|line| line == size), "{text}");
    }
}
