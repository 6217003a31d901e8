//! What a volume was asked for since it was plugged, as QEMU counts it
//! ([`query-blockstats`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block-core.query-blockstats))
//! and as the guest's kernel does. QEMU counts what reached the disk, the guest what it asked for:
//! the time there holds the waiting for a limit and for a busy QEMU, too.

use std::{collections::HashMap, time::Duration};

use block_volume_api::block_volume::BlockStats;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::volume::VolumeId;
use block_volume_qmp::{Qmp, QmpError};

/// Of one kind of operations. What is absent is not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Operations {
    /// How many succeeded (of the guest's: ended).
    pub operations: u64,
    /// How many bytes they moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Nanoseconds, added up over operations that ran side by side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_time_ns: Option<u64>,
    /// Of one operation; zero where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_time_ns: Option<u64>,
    /// How many failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<u64>,
    /// How many were not possible at all, for instance beyond the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<u64>,
}

impl Operations {
    fn timed(operations: u64, bytes: Option<u64>, time: Duration, failed: Option<u64>) -> Self {
        let total = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // QEMU adds the time of failed operations, too.
        let ended = operations.saturating_add(failed.unwrap_or_default());
        let average = total.checked_div(ended).unwrap_or_default();
        Self {
            operations,
            bytes,
            total_time_ns: Some(total),
            average_time_ns: Some(average),
            failed,
            invalid: None,
        }
    }
}

/// The kinds of operations, in the order in which they are shown.
pub(crate) const KINDS: [&str; 4] = ["read", "write", "flush", "discard"];

/// As QEMU counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QemuStats {
    /// Reads.
    pub read: Operations,
    /// Writes.
    pub write: Operations,
    /// Flushes of the disk's cache; of no bytes.
    pub flush: Operations,
    /// Discards.
    pub discard: Operations,
}

impl QemuStats {
    /// In the order of [`KINDS`].
    pub(crate) fn all(&self) -> [Operations; 4] {
        [self.read, self.write, self.flush, self.discard]
    }

    /// All operations that did not come to a good end.
    pub(crate) fn errors(&self) -> u64 {
        let each = self.all().map(|of| [of.failed, of.invalid]);
        each.iter().flatten().flatten().fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn from_qemu(stats: &Value) -> Self {
        let of = |kind: &str, bytes: Option<&str>| {
            let number = |name: String| stats[name].as_u64().unwrap_or_default();
            let bytes = bytes.map(|name| number(name.to_owned()));
            let time = Duration::from_nanos(number(format!("{kind}_total_time_ns")));
            let failed = number(format!("failed_{kind}_operations"));
            Operations {
                invalid: Some(number(format!("invalid_{kind}_operations"))),
                ..Operations::timed(number(format!("{kind}_operations")), bytes, time, Some(failed))
            }
        };
        Self {
            read: of("rd", Some("rd_bytes")),
            write: of("wr", Some("wr_bytes")),
            flush: of("flush", None),
            discard: of("unmap", Some("unmap_bytes")),
        }
    }

    /// Of all volumes of ours that are plugged.
    ///
    /// # Errors
    /// QEMU does not answer, or not in the documented form.
    pub(crate) async fn read(qmp: &mut Qmp) -> Result<HashMap<VolumeId, Self>, QmpError> {
        let drives: Vec<Value> = qmp.query("query-blockstats", json!({})).await?;
        let of = |drive: &Value| {
            let id = VolumeId::of_name(drive["qdev"].as_str()?)?;
            Some((id, Self::from_qemu(&drive["stats"])))
        };
        Ok(drives.iter().filter_map(of).collect())
    }
}

/// As the guest's kernel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestStats {
    /// Reads.
    pub read: Operations,
    /// Writes; a flush that carries no bytes is counted here, too.
    pub write: Operations,
    /// Flushes.
    pub flush: Operations,
    /// Discards.
    pub discard: Operations,
    /// Requests under way.
    pub in_flight: u64,
    /// SCSI commands that failed, for whatever reason; a notice such as "capacity has changed" is
    /// one.
    pub scsi_errors: u64,
}

impl GuestStats {
    /// In the order of [`KINDS`].
    pub(crate) fn all(&self) -> [Operations; 4] {
        [self.read, self.write, self.flush, self.discard]
    }
}

impl From<&BlockStats> for GuestStats {
    fn from(stats: &BlockStats) -> Self {
        let moved = |operations, bytes, ms| {
            Operations::timed(operations, Some(bytes), Duration::from_millis(ms), None)
        };
        let counted = |operations| Operations { operations, ..Operations::default() };
        Self {
            read: moved(stats.reads, stats.read_bytes, stats.read_ms),
            write: moved(stats.writes, stats.written_bytes, stats.write_ms),
            flush: counted(stats.flushes),
            discard: counted(stats.discards),
            in_flight: stats.in_flight,
            scsi_errors: stats.errors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_qemu_tells_is_read() {
        let stats = QemuStats::from_qemu(&json!({
            "rd_operations": 3, "rd_bytes": 4096, "rd_total_time_ns": 4000, "failed_rd_operations": 1,
            "invalid_rd_operations": 7, "unmap_operations": 2, "unmap_bytes": 512, "wr_operations": 0,
        }));
        let read = Operations {
            operations: 3,
            bytes: Some(4096),
            total_time_ns: Some(4000),
            average_time_ns: Some(1000),
            failed: Some(1),
            invalid: Some(7),
        };
        assert_eq!((stats.read, stats.discard.bytes, stats.flush.bytes), (read, Some(512), None));
        assert_eq!(stats.write.average_time_ns, Some(0), "nothing is not divided");
        assert_eq!(
            serde_json::to_string(&stats.flush).unwrap(),
            r#"{"operations":0,"total_time_ns":0,"average_time_ns":0,"failed":0,"invalid":0}"#
        );
    }

    #[test]
    fn counters_at_their_end_are_not_added_beyond_it() {
        let stats = QemuStats::from_qemu(&json!({
            "rd_operations": u64::MAX, "failed_rd_operations": 1, "rd_total_time_ns": u64::MAX, "invalid_rd_operations": u64::MAX,
        }));
        assert_eq!((stats.read.average_time_ns, stats.errors()), (Some(1), u64::MAX));
    }

    #[test]
    fn the_guests_milliseconds_become_nanoseconds() {
        let told = BlockStats {
            writes: 4,
            written_bytes: 8,
            write_ms: 6,
            errors: 2,
            flushes: 5,
            ..Default::default()
        };
        let stats = GuestStats::from(&told);
        assert_eq!(
            (stats.write.total_time_ns, stats.write.average_time_ns),
            (Some(6_000_000), Some(1_500_000))
        );
        assert_eq!(
            (stats.scsi_errors, stats.flush.operations, stats.flush.total_time_ns),
            (2, 5, None)
        );
    }
}
