//! The counters in Prometheus' [text
//! format](https://prometheus.io/docs/instrumenting/exposition_formats/): for each metric its help,
//! its type, and a line for each volume. Base units, counters end in `_total`. Values are written
//! as decimal digits, without floating point.

use std::fmt::Write as _;

use super::stats_report::{StatsReport, VolumeStats};
use crate::{
    ops::file_system::FileSystemUse,
    qemu::block_stats::{KINDS, Operations},
};

/// A text format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// Prometheus' own.
    Prometheus,
    /// [OpenMetrics](https://prometheus.io/docs/specs/om/open_metrics_spec/), where `_total` is no
    /// part of a metric's name. The end mark is the caller's.
    OpenMetrics,
}

/// More labels of a volume: a name, and a value.
pub type Labels = Vec<(&'static str, String)>;

/// All metrics in Prometheus' text format.
pub(crate) fn exposition(report: &StatsReport) -> String {
    page(&report.volumes, TextFormat::Prometheus, &|_| Labels::new())
}

/// All metrics of `all`, each volume with its own `labels`. A metric without samples is left out.
pub fn page(
    all: &[VolumeStats],
    format: TextFormat,
    labels: &dyn Fn(&VolumeStats) -> Labels,
) -> String {
    let mut page =
        Page { text: String::new(), name: String::new(), head: None, format, more: labels };
    let count = |value: u64| value.to_string();

    page.family("size_bytes", "gauge", "Size of the volume.");
    all.iter().for_each(|volume| page.sample(volume, None, count(volume.size)));

    page.each(
        "operations_total",
        "Operations that reached the disk and succeeded.",
        all,
        of_qemu,
        |of| Some(count(of.operations)),
    );
    page.each("bytes_total", "Bytes that these operations transferred.", all, of_qemu, |of| {
        of.bytes.map(count)
    });
    page.each(
        "operation_seconds_total",
        "Time in QEMU, summed over operations that ran in parallel.",
        all,
        of_qemu,
        |of| of.total_time_ns.map(seconds),
    );
    page.each(
        "failed_operations_total",
        "Operations that failed on the host.",
        all,
        of_qemu,
        |of| of.failed.map(count),
    );
    page.each(
        "invalid_operations_total",
        "Operations that were invalid, for instance beyond the end.",
        all,
        of_qemu,
        |of| of.invalid.map(count),
    );

    page.family("guest_up", "gauge", "Whether the guest reported its counters.");
    all.iter().for_each(|volume| page.sample(volume, None, count(volume.guest.is_some().into())));
    page.family(
        "container_state",
        "gauge",
        "1 for the state of the container that the guest reports.",
    );
    for volume in all {
        if let Some(state) = volume.container_state {
            page.labelled(volume, Some(("state", state.label())), count(1));
        }
    }
    page.each(
        "guest_operations_total",
        "Operations, as the guest's kernel counts.",
        all,
        of_guest,
        |of| Some(count(of.operations)),
    );
    page.each("guest_bytes_total", "Bytes, as the guest's kernel counts.", all, of_guest, |of| {
        of.bytes.map(count)
    });
    page.each(
        "guest_operation_seconds_total",
        "Time that the guest's kernel waited, summed over operations that ran in parallel.",
        all,
        of_guest,
        |of| of.total_time_ns.map(seconds),
    );
    page.family("guest_in_flight", "gauge", "Requests of the guest's kernel that are in flight.");
    for volume in all {
        page.sample(volume, None, volume.guest.map(|guest| count(guest.in_flight)));
    }
    page.family(
        "guest_scsi_errors_total",
        "counter",
        "SCSI commands that failed in the guest since the volume was attached, notices included.",
    );
    for volume in all {
        page.sample(volume, None, volume.guest.map(|guest| count(guest.scsi_errors)));
    }
    for (name, help, value) in FILE_SYSTEM {
        page.family(name, "gauge", help);
        for volume in all {
            page.sample(volume, None, volume.file_system.as_ref().and_then(value).map(count));
        }
    }
    page.text
}

/// A metric of file systems: its name, help and value.
type OfFileSystem = (&'static str, &'static str, fn(&FileSystemUse) -> Option<u64>);

/// After kubelet's `kubelet_volume_stats_…`, by the same names and with the same meaning.
const FILE_SYSTEM: [OfFileSystem; 7] = [
    ("capacity_bytes", "Size of the file system.", |of| Some(of.capacity_bytes)),
    ("used_bytes", "Bytes of the file system in use.", |of| Some(of.used_bytes)),
    ("available_bytes", "Bytes of the file system that users other than root can use.", |of| {
        Some(of.available_bytes)
    }),
    ("inodes", "Inodes of the file system.", |of| counted(of, of.inodes)),
    ("inodes_used", "Inodes in use.", |of| counted(of, of.inodes_used)),
    ("inodes_free", "Inodes that are free.", |of| counted(of, of.inodes_free)),
    ("file_system_read_only", "Whether the file system refuses writes.", |of| {
        Some(of.read_only.into())
    }),
];

/// A count of inodes, if the file system has one.
fn counted(of: &FileSystemUse, value: u64) -> Option<u64> {
    (of.inodes > 0).then_some(value)
}

fn of_qemu(volume: &VolumeStats) -> Option<[Operations; 4]> {
    volume.qemu.map(|stats| stats.all())
}

fn of_guest(volume: &VolumeStats) -> Option<[Operations; 4]> {
    volume.guest.map(|stats| stats.all())
}

fn seconds(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

/// The text so far. The head of a metric is held back until its first sample.
struct Page<'a> {
    text: String,
    name: String,
    head: Option<String>,
    format: TextFormat,
    more: &'a dyn Fn(&VolumeStats) -> Labels,
}

impl Page<'_> {
    /// Begins a metric.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.name = format!("ecr_block_volume_{name}");
        let name = match self.format {
            TextFormat::Prometheus => &self.name,
            TextFormat::OpenMetrics => self.name.strip_suffix("_total").unwrap_or(&self.name),
        };
        self.head = Some(format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A counter for each kind of operation.
    fn each(
        &mut self,
        name: &str,
        help: &str,
        volumes: &[VolumeStats],
        stats: fn(&VolumeStats) -> Option<[Operations; 4]>,
        value: impl Fn(&Operations) -> Option<String>,
    ) {
        self.family(name, "counter", help);
        for volume in volumes {
            for (kind, operations) in KINDS.iter().zip(stats(volume).iter().flatten()) {
                self.sample(volume, Some(kind), value(operations));
            }
        }
    }

    fn sample(
        &mut self,
        volume: &VolumeStats,
        operation: Option<&str>,
        value: impl Into<Option<String>>,
    ) {
        if let Some(value) = value.into() {
            self.labelled(volume, operation.map(|kind| ("operation", kind)), value);
        }
    }

    fn labelled(&mut self, volume: &VolumeStats, label: Option<(&str, &str)>, value: String) {
        self.text.extend(self.head.take());
        let VolumeStats { sandbox, container, id, place, .. } = volume;
        let labels: [(&str, &str); 4] = [
            ("sandbox", sandbox),
            ("container", container),
            ("volume", id),
            (place.label(), place.path()),
        ];
        let mut labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let more = (self.more)(volume);
        labels.extend(more.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))));
        let label = label.map(|(name, value)| format!(",{name}=\"{value}\"")).unwrap_or_default();
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{}{{{}{label}}} {value}", self.name, labels.join(","));
    }
}

/// Escapes a label's value: the format escapes three characters.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
#[path = "prometheus_tests.rs"]
mod tests;
