//! What `stats` prints: the counters of volumes, as a table for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::table::table;
use crate::{
    error::ErrorBody,
    ops::{
        container_state::ContainerState, file_system::FileSystemUse, guest_stats::GuestStats,
        place::Place,
    },
    pod::PodView,
    qemu::block_stats::{Operations, QemuStats},
    sanitize::sanitize,
    size::human_size,
};

/// The counters of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatsReport {
    /// By container and path.
    pub volumes: Vec<VolumeStats>,
    /// Why the guest could not be asked; the volumes then have QEMU's counters alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ErrorBody>,
}

/// The counters of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct VolumeStats {
    /// The volume ID.
    pub id: String,
    /// The sandbox's ID.
    pub sandbox: String,
    /// The container's ID.
    pub container: String,
    /// The pod, and the container's name in it, as far as they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodView>,
    /// The path in the container: `device_path`, or `mount_path` and how it is mounted.
    #[serde(flatten)]
    pub place: Place,
    /// The size in bytes.
    pub size: u64,
    /// QEMU's counters; absent if QEMU has no such disk, as of an incomplete volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuStats>,
    /// The state of the container; absent if the guest was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_state: Option<ContainerState>,
    /// What the file system has, and how much of it is in use; absent if the volume is no mount, or
    /// the guest does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_system: Option<FileSystemUse>,
    /// The guest's counters; absent if the guest was not asked, or has no such disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestStats>,
    /// What the guest could not tell of this volume, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_error: Option<ErrorBody>,
}

const HEAD: [&str; 11] = [
    "VOLUME",
    "CONTAINER",
    "PATH",
    "BY",
    "READS",
    "READ",
    "TIME EACH",
    "WRITES",
    "WRITTEN",
    "TIME EACH",
    "ERRORS",
];

/// The counters for people: two rows for each volume, one of QEMU and one of the guest.
pub(crate) fn human(report: &StatsReport) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for volume in &report.volumes {
        let row = |by: &str, read: &Operations, write: &Operations, errors: u64| {
            [
                volume.id.clone(),
                sanitize(&volume.container).chars().take(12).collect(),
                sanitize(volume.place.path()),
                by.to_owned(),
                read.operations.to_string(),
                human_size(read.bytes.unwrap_or_default()),
                time_each(read),
                write.operations.to_string(),
                human_size(write.bytes.unwrap_or_default()),
                time_each(write),
                errors.to_string(),
            ]
        };
        rows.extend(
            volume.qemu.map(|stats| row("qemu", &stats.read, &stats.write, stats.errors())),
        );
        rows.extend(
            volume.guest.map(|stats| row("guest", &stats.read, &stats.write, stats.scsi_errors)),
        );
    }
    let mut lines = table(rows);
    if report.volumes.is_empty() {
        lines = vec!["no volumes are attached".to_owned()];
    }
    lines.extend(report.volumes.iter().filter_map(|volume| {
        let file_system = volume.file_system.as_ref()?;
        Some(sanitize(&format!("{} {}", volume.place.path(), file_system.text())))
    }));
    lines.extend(
        report
            .guest_error
            .iter()
            .map(|error| format!("the guest was not asked: {}", error.message)),
    );
    lines.extend(report.volumes.iter().filter_map(|volume| {
        let error = volume.guest_error.as_ref()?;
        Some(format!("the guest cannot tell about volume {}: {}", volume.id, error.message))
    }));
    lines.join("\n")
}

fn time_each(operations: &Operations) -> String {
    match operations.average_time_ns {
        Some(nanos) if operations.operations > 0 => format!("{:.3} ms", nanos as f64 / 1e6),
        _ => String::new(),
    }
}

#[cfg(test)]
#[path = "stats_report_tests.rs"]
pub(super) mod tests;
