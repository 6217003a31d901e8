//! The limits of a volume: how many operations and bytes per second its guest gets, as QEMU keeps
//! and enforces them
//! ([throttling](https://gitlab.com/qemu-project/qemu/-/blob/master/docs/throttle.txt),
//! `block_set_io_throttle` and `query-block`). They belong to the disk in QEMU and are removed with
//! it.
//!
//! There are six limits, each with a burst up to which it may be exceeded for a while. A limit for
//! reads and writes together excludes limits for reads or writes alone.

use std::{collections::HashMap, fmt};

use block_volume_qmp::{Command, Qmp, QmpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::medium::Drive;
use crate::{Error, size::human_size, volume_id::VolumeId};

/// The largest limit or burst that QEMU accepts; also the largest product of a burst and its
/// seconds.
pub(crate) const LARGEST: u64 = 1_000_000_000_000_000;

/// The names of a limit in QEMU and on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitKind {
    /// `iops_rd`
    qemu: &'static str,
    /// `iops-read`
    pub(crate) flag: &'static str,
}

/// The six limits: operations, then bytes; the total of reads and writes first, then each alone.
pub(crate) const KINDS: [LimitKind; 6] = [
    LimitKind { qemu: "iops", flag: "iops" },
    LimitKind { qemu: "iops_rd", flag: "iops-read" },
    LimitKind { qemu: "iops_wr", flag: "iops-write" },
    LimitKind { qemu: "bps", flag: "bps" },
    LimitKind { qemu: "bps_rd", flag: "bps-read" },
    LimitKind { qemu: "bps_wr", flag: "bps-write" },
];

/// A limit per second and its burst. All zero: unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Operations or bytes per second.
    pub limit: u64,
    /// Operations or bytes per second during a burst; zero: no burst.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub burst: u64,
    /// The longest burst in seconds; zero without a burst.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub burst_seconds: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The limits of one volume; those that are absent are unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Operations per second, reads and writes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<Limit>,
    /// Reads per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_read: Option<Limit>,
    /// Writes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_write: Option<Limit>,
    /// Bytes per second, read and written together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps: Option<Limit>,
    /// Bytes read per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps_read: Option<Limit>,
    /// Bytes written per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps_write: Option<Limit>,
}

impl Limits {
    /// The limits in the order of [`KINDS`].
    pub(crate) fn all(&self) -> [Limit; 6] {
        [self.iops, self.iops_read, self.iops_write, self.bps, self.bps_read, self.bps_write]
            .map(Option::unwrap_or_default)
    }

    /// The limits from an array in the order of [`KINDS`].
    pub(crate) fn from_all(all: [Limit; 6]) -> Self {
        let [iops, iops_read, iops_write, bps, bps_read, bps_write] =
            all.map(|limit| Some(limit).filter(|limit| limit.limit > 0));
        Self { iops, iops_read, iops_write, bps, bps_read, bps_write }
    }

    /// Whether there is no limit at all.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// Parses `inserted` of `query-block`. A version of QEMU without one of the fields has no such
    /// limit.
    pub(super) fn from_qemu(inserted: &Value) -> Self {
        let number = |name: &str| inserted[name].as_u64().unwrap_or_default();
        Self::from_all(KINDS.map(|LimitKind { qemu, .. }| {
            let burst = number(&format!("{qemu}_max"));
            let burst_seconds =
                if burst > 0 { number(&format!("{qemu}_max_length")).max(1) } else { 0 };
            Limit { limit: number(qemu), burst, burst_seconds }
        }))
    }

    /// Reads the limits of all attached volumes.
    ///
    /// # Errors
    /// QEMU does not reply, or not in the documented form.
    pub(crate) async fn read(qmp: &mut Qmp) -> Result<HashMap<VolumeId, Self>, QmpError> {
        let drives = Drive::read(qmp).await?;
        Ok(drives.into_iter().map(|(id, drive)| (id, drive.limits)).collect())
    }

    /// Sets the limits of the volume `id`.
    ///
    /// # Errors
    /// QEMU refuses, or does not reply.
    pub(crate) async fn write(&self, qmp: &mut Qmp, id: &VolumeId) -> Result<(), QmpError> {
        qmp.send_all(&[self.command(id)]).await.read::<Value>().map(drop)
    }

    /// The command that sets them. QEMU resets each limit that is left out, so all are sent.
    pub(super) fn command(&self, id: &VolumeId) -> Command<'static> {
        let mut arguments = json!({"id": id.device()});
        for (LimitKind { qemu, .. }, Limit { limit, burst, burst_seconds }) in
            KINDS.iter().zip(self.all())
        {
            arguments[qemu] = limit.into();
            if burst > 0 {
                arguments[format!("{qemu}_max")] = burst.into();
                arguments[format!("{qemu}_max_length")] = burst_seconds.into();
            }
        }
        Command::new("block_set_io_throttle", arguments)
    }

    /// Checks whether QEMU would accept them.
    ///
    /// # Errors
    /// Says what is wrong, with the flags of the command line.
    pub(crate) fn check(&self) -> Result<(), String> {
        let all = self.all();
        for (LimitKind { flag, .. }, Limit { limit, burst, burst_seconds }) in KINDS.iter().zip(all)
        {
            if burst > 0 && burst < limit {
                return Err(format!("the burst {burst} is below the limit --{flag} {limit}"));
            }
            if burst.checked_mul(burst_seconds).is_none_or(|total| total > LARGEST) {
                return Err(format!(
                    "a burst of {burst} for {burst_seconds} seconds is more than the {LARGEST} in total that QEMU accepts"
                ));
            }
        }
        for three in [0, 3] {
            let parts = &all[three + 1..three + 3];
            if let Some(part) =
                parts.iter().position(|limit| limit.limit > 0).filter(|_| all[three].limit > 0)
            {
                let (total, part) = (three, three + 1 + part);
                return Err(format!(
                    "--{} {} and --{} {} exclude each other: set one of them to 0",
                    KINDS[total].flag, all[total].limit, KINDS[part].flag, all[part].limit
                ));
            }
        }
        Ok(())
    }
}

/// The form for people: `iops 100 (burst 200 for 3 s), bps-read 1 MiB`.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (LimitKind { flag, .. }, Limit { limit, burst, burst_seconds }) in
            KINDS.iter().zip(self.all())
        {
            if limit == 0 {
                continue;
            }
            let amount = |count: u64| {
                if flag.starts_with("bps") { human_size(count) } else { count.to_string() }
            };
            write!(f, "{separator}{flag} {}", amount(limit))?;
            if burst > 0 {
                write!(f, " (burst {} for {burst_seconds} s)", amount(burst))?;
            }
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("unlimited") } else { Ok(()) }
    }
}

/// A change of a volume's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LimitChange {
    /// The limit and its burst in the order of [`KINDS`], where they are given.
    pub(crate) each: [(Option<u64>, Option<u64>); 6],
    /// The seconds of each burst that is given.
    pub(crate) burst_seconds: Option<u64>,
}

impl LimitChange {
    /// Whether no limit is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.each == Self::default().each
    }

    /// Checks the change without the present limits.
    ///
    /// # Errors
    /// No volume could have these limits.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (LimitKind { flag, .. }, (limit, burst)) in KINDS.iter().zip(self.each) {
            if limit == Some(0) && burst.is_some_and(|burst| burst > 0) {
                let why = format!("--burst-{flag} needs a limit, and --{flag} is 0");
                return Err(Error::InvalidLimits { why });
            }
        }
        // A burst whose limit is not given is checked when the present limit is known.
        let named = Limits::from_all(self.each.map(|(limit, burst)| {
            let burst = burst.unwrap_or_default();
            let burst_seconds = if burst > 0 { self.burst_seconds.unwrap_or(1) } else { 0 };
            Limit { limit: limit.unwrap_or_default(), burst, burst_seconds }
        }));
        named.check().map_err(|why| Error::InvalidLimits { why })
    }

    /// The limits of a new volume.
    ///
    /// # Errors
    /// A burst is given without its limit.
    pub(crate) fn alone(&self) -> Result<Limits, Error> {
        self.applied(&Limits::default()).map_err(|why| Error::InvalidLimits { why })
    }

    /// Applies the change to `present`. A limit that is not given stays; a limit that is removed
    /// loses its burst, too.
    ///
    /// # Errors
    /// The change conflicts with the present limits.
    pub(crate) fn apply(&self, volume: &VolumeId, present: &Limits) -> Result<Limits, Error> {
        self.applied(present)
            .map_err(|why| Error::LimitsConflict { volume: volume.to_string(), why })
    }

    fn applied(&self, present: &Limits) -> Result<Limits, String> {
        let mut all = present.all();
        for ((limit, burst), (is, LimitKind { flag, .. })) in
            self.each.iter().zip(all.iter_mut().zip(&KINDS))
        {
            is.limit = limit.unwrap_or(is.limit);
            if let Some(burst) = *burst {
                if burst > 0 && is.limit == 0 {
                    return Err(format!("--burst-{flag} needs a limit: give --{flag}, too"));
                }
                let before = if is.burst > 0 { is.burst_seconds } else { 1 };
                is.burst_seconds = if burst > 0 { self.burst_seconds.unwrap_or(before) } else { 0 };
                is.burst = burst;
            }
            if is.limit == 0 {
                *is = Limit::default();
            }
        }
        let limits = Limits::from_all(all);
        limits.check().map(|()| limits)
    }
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;
