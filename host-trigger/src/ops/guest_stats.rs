//! Counters of a volume since it was attached, as the guest's kernel counts: what the guest
//! requested. Its times include waiting for a limit and for a busy QEMU.

use std::time::Duration;

use block_volume_api::block_volume::BlockStats;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::qemu::block_stats::Operations;

/// Counters of the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestStats {
    /// Reads.
    pub read: Operations,
    /// Writes; includes flushes without data.
    pub write: Operations,
    /// Flushes.
    pub flush: Operations,
    /// Discards.
    pub discard: Operations,
    /// Requests in flight.
    pub in_flight: u64,
    /// SCSI commands that failed since the volume was attached, for whatever reason; a notice such
    /// as "capacity has changed" is one.
    pub scsi_errors: u64,
}

impl GuestStats {
    /// The counters in the order of [`KINDS`](crate::qemu::block_stats::KINDS).
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
    fn milliseconds_become_nanoseconds() {
        let reply = BlockStats {
            writes: 4,
            written_bytes: 8,
            write_ms: 6,
            errors: 2,
            flushes: 5,
            ..Default::default()
        };
        let stats = GuestStats::from(&reply);
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
