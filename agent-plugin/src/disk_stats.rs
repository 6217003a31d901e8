//! The kernel's counters of a disk since it appeared: the block layer's
//! [`stat`](https://docs.kernel.org/block/stat.html), and `ioerr_cnt` of the SCSI device below it.

use crate::text::{decimal, words};

/// Counters of one disk. Times add up over concurrent requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskStats {
    /// Completed reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Milliseconds that reads took.
    pub read_ms: u64,
    /// Completed writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Milliseconds that writes took.
    pub write_ms: u64,
    /// Completed discards.
    pub discards: u64,
    /// Completed flushes; none before Linux 5.5.
    pub flushes: u64,
    /// Requests in flight.
    pub in_flight: u64,
    /// SCSI commands that failed.
    pub errors: u64,
}

impl DiskStats {
    /// Parses columns of numbers. Later kernels add columns on the right. Sectors have 512 bytes.
    pub fn parse(text: &[u8]) -> Option<DiskStats> {
        let mut columns: Vec<u64> = Vec::with_capacity(17);
        for word in words(text) {
            columns.push(decimal(word)?);
        }
        let [
            reads,
            _,
            sectors_read,
            read_ms,
            writes,
            _,
            sectors_written,
            write_ms,
            in_flight,
            _,
            _,
            ..,
        ] = columns[..]
        else {
            return None;
        };
        let later = |column: usize| columns.get(column).copied().unwrap_or_default();
        Some(DiskStats {
            reads,
            read_bytes: sectors_read.saturating_mul(512),
            read_ms,
            writes,
            written_bytes: sectors_written.saturating_mul(512),
            write_ms,
            discards: later(11),
            flushes: later(15),
            in_flight,
            errors: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &[u8] =
        b"     71        3     2432       25       12       1      512       15        2       \
        40       45        6        0     4096        7        9        3";

    #[test]
    fn every_column_is_assigned() {
        let expected = DiskStats {
            reads: 71,
            read_bytes: 2432 * 512,
            read_ms: 25,
            writes: 12,
            written_bytes: 512 * 512,
            write_ms: 15,
            discards: 6,
            flushes: 9,
            in_flight: 2,
            errors: 0,
        };
        assert_eq!(DiskStats::parse(STAT), Some(expected));
    }

    #[test]
    fn an_older_kernel_has_at_least_eleven_columns() {
        let eleven = b"1 2 3 4 5 6 7 8 9 10 11";
        assert_eq!(DiskStats::parse(eleven).unwrap().flushes, 0);
        assert_eq!(DiskStats::parse(&eleven[..eleven.len() - 3]), None);
        assert_eq!(DiskStats::parse(b"1 2 3 4 5 6 7 8 9 10 x"), None);
    }
}
