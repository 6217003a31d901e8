//! Counters of a volume since it was attached, as QEMU counts
//! ([`query-blockstats`](https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#command-QMP-block-core.query-blockstats)):
//! what reached the disk.

use std::{collections::HashMap, time::Duration};

use block_volume_qmp::{Qmp, QmpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::volume_id::VolumeId;

/// Counters of one kind of operation. A counter that is absent does not exist there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Operations {
    /// Operations that succeeded (in the guest: that ended).
    pub operations: u64,
    /// Bytes that they transferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Nanoseconds, summed over operations that ran in parallel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_time_ns: Option<u64>,
    /// Nanoseconds of one operation; zero if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_time_ns: Option<u64>,
    /// Operations that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<u64>,
    /// Operations that were invalid, for instance beyond the end of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invalid: Option<u64>,
}

impl Operations {
    pub(crate) fn timed(
        operations: u64,
        bytes: Option<u64>,
        time: Duration,
        failed: Option<u64>,
    ) -> Self {
        let total = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // QEMU's total includes the time of failed operations.
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

/// The kinds of operations, in the order of output.
pub(crate) const KINDS: [&str; 4] = ["read", "write", "flush", "discard"];

/// Counters of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QemuStats {
    /// Reads.
    pub read: Operations,
    /// Writes.
    pub write: Operations,
    /// Flushes of the disk's cache; they have no bytes.
    pub flush: Operations,
    /// Discards.
    pub discard: Operations,
}

impl QemuStats {
    /// The counters in the order of [`KINDS`].
    pub(crate) fn all(&self) -> [Operations; 4] {
        [self.read, self.write, self.flush, self.discard]
    }

    /// All operations that failed or were invalid.
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

    /// Reads the counters of all attached volumes.
    ///
    /// # Errors
    /// QEMU does not reply, or not in the documented form.
    pub(crate) async fn read(qmp: &mut Qmp) -> Result<HashMap<VolumeId, Self>, QmpError> {
        let drives: Vec<Value> = qmp.query("query-blockstats", json!({})).await?;
        let of = |drive: &Value| {
            let id = VolumeId::of_name(drive["qdev"].as_str()?)?;
            Some((id, Self::from_qemu(&drive["stats"])))
        };
        Ok(drives.iter().filter_map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_of_qemu_is_parsed() {
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
    fn sums_saturate() {
        let stats = QemuStats::from_qemu(&json!({
            "rd_operations": u64::MAX, "failed_rd_operations": 1, "rd_total_time_ns": u64::MAX, "invalid_rd_operations": u64::MAX,
        }));
        assert_eq!((stats.read.average_time_ns, stats.errors()), (Some(1), u64::MAX));
    }
}
