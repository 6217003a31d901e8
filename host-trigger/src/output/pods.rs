//! The names of pods in a report.

use super::{
    listing::Listing, repair_report::RepairReport, report::Report, stats_report::StatsReport,
};
use crate::{ops::pod_names::PodNames, pod::PodView};

/// A report about volumes in containers.
pub(crate) trait NamePods {
    /// Adds the names of the pods that are known and not there yet.
    fn name_pods(&mut self, names: &PodNames);
}

fn name(pod: &mut Option<PodView>, container: &str, names: &PodNames) {
    if pod.is_none() {
        *pod = names.of(container);
    }
}

impl NamePods for Report {
    fn name_pods(&mut self, names: &PodNames) {
        for volume in &mut self.volumes {
            name(&mut volume.pod, &volume.container, names);
        }
    }
}

impl NamePods for Listing {
    fn name_pods(&mut self, names: &PodNames) {
        for listed in &mut self.volumes {
            name(&mut listed.volume.pod, &listed.volume.container, names);
        }
        for sandbox in &mut self.sandboxes {
            name(&mut sandbox.pod, &sandbox.id, names);
        }
    }
}

impl NamePods for StatsReport {
    fn name_pods(&mut self, names: &PodNames) {
        for volume in &mut self.volumes {
            name(&mut volume.pod, &volume.container, names);
        }
    }
}

impl NamePods for RepairReport {
    fn name_pods(&mut self, names: &PodNames) {
        for volume in &mut self.volumes {
            name(&mut volume.pod, &volume.container, names);
        }
    }
}
