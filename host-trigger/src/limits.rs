//! A volume's limits: how many operations and bytes a second its guest gets, as QEMU keeps and
//! enforces them
//! ([throttling](https://gitlab.com/qemu-project/qemu/-/blob/master/docs/throttle.txt),
//! `block_set_io_throttle` and what `query-block` tells). They belong to the disk in QEMU, and go
//! with it.
//!
//! There are six limits, each with a burst that it may be exceeded by for a while. A limit for
//! reads and writes together excludes those for reads and for writes alone.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{Error, size::human_size, volume::VolumeId};
use block_volume_qmp::{Qmp, QmpError};

/// The largest limit or burst that QEMU takes; also for a burst times its seconds.
pub(crate) const LARGEST: u64 = 1_000_000_000_000_000;

/// One of the six, with the names that it has in QEMU and on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    /// `iops_rd`
    qemu: &'static str,
    /// `iops-read`
    pub(crate) flag: &'static str,
}

/// Operations first; of either three the one for reads and writes together comes first.
pub(crate) const KINDS: [Kind; 6] = [
    Kind { qemu: "iops", flag: "iops" },
    Kind { qemu: "iops_rd", flag: "iops-read" },
    Kind { qemu: "iops_wr", flag: "iops-write" },
    Kind { qemu: "bps", flag: "bps" },
    Kind { qemu: "bps_rd", flag: "bps-read" },
    Kind { qemu: "bps_wr", flag: "bps-write" },
];

/// A limit a second, and its burst. All zero: unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limit {
    /// Operations or bytes a second.
    pub limit: u64,
    /// Up to so many a second for a while; zero: no burst.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub burst: u64,
    /// For so many seconds; zero without a burst.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub burst_seconds: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The limits of one volume; those that are absent are unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Operations a second, reads and writes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<Limit>,
    /// Reads a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_read: Option<Limit>,
    /// Writes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops_write: Option<Limit>,
    /// Bytes a second, read and written together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps: Option<Limit>,
    /// Bytes read a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps_read: Option<Limit>,
    /// Bytes written a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bps_write: Option<Limit>,
}

impl Limits {
    /// In the order of [`KINDS`].
    pub(crate) fn all(&self) -> [Limit; 6] {
        [self.iops, self.iops_read, self.iops_write, self.bps, self.bps_read, self.bps_write]
            .map(Option::unwrap_or_default)
    }

    /// From the same order.
    pub(crate) fn of(all: [Limit; 6]) -> Self {
        let [iops, iops_read, iops_write, bps, bps_read, bps_write] =
            all.map(|limit| Some(limit).filter(|limit| limit.limit > 0));
        Self { iops, iops_read, iops_write, bps, bps_read, bps_write }
    }

    /// Without any.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// What QEMU says of a disk's medium (`inserted` in `query-block`). A version without one of
    /// the fields has no such limit.
    fn from_qemu(inserted: &Value) -> Self {
        let number = |name: &str| inserted[name].as_u64().unwrap_or_default();
        Self::of(KINDS.map(|Kind { qemu, .. }| {
            let burst = number(&format!("{qemu}_max"));
            let burst_seconds =
                if burst > 0 { number(&format!("{qemu}_max_length")).max(1) } else { 0 };
            Limit { limit: number(qemu), burst, burst_seconds }
        }))
    }

    /// The limits of all volumes of ours that are plugged.
    ///
    /// # Errors
    /// QEMU does not answer, or not in the documented form.
    pub(crate) async fn read(qmp: &mut Qmp) -> Result<HashMap<VolumeId, Self>, QmpError> {
        let drives: Vec<Value> = qmp.query("query-block", json!({})).await?;
        let of = |drive: &Value| {
            let id = VolumeId::of_name(drive["qdev"].as_str()?)?;
            Some((id, Self::from_qemu(&drive["inserted"])))
        };
        Ok(drives.iter().filter_map(of).collect())
    }

    /// Makes these the limits of the volume `id`. What QEMU is not told, it resets: so it is told
    /// all.
    ///
    /// # Errors
    /// QEMU refuses, or does not answer.
    pub(crate) async fn write(&self, qmp: &mut Qmp, id: &VolumeId) -> Result<(), QmpError> {
        let mut arguments = json!({"id": id.device()});
        for (Kind { qemu, .. }, Limit { limit, burst, burst_seconds }) in
            KINDS.iter().zip(self.all())
        {
            arguments[qemu] = limit.into();
            if burst > 0 {
                arguments[format!("{qemu}_max")] = burst.into();
                arguments[format!("{qemu}_max_length")] = burst_seconds.into();
            }
        }
        qmp.execute("block_set_io_throttle", arguments).await.map(drop)
    }

    /// Would QEMU take them?
    ///
    /// # Errors
    /// Says what is wrong, in the words of the command line.
    pub(crate) fn check(&self) -> Result<(), String> {
        let all = self.all();
        for (Kind { flag, .. }, Limit { limit, burst, burst_seconds }) in KINDS.iter().zip(all) {
            if burst > 0 && burst < limit {
                return Err(format!("the burst {burst} is below the limit --{flag} {limit}"));
            }
            if burst.checked_mul(burst_seconds).is_none_or(|total| total > LARGEST) {
                return Err(format!(
                    "a burst of {burst} for {burst_seconds} seconds is more than the {LARGEST} in all that QEMU takes"
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

/// For people: `iops 100 (burst 200 for 3 s), bps-read 1 MiB`.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (Kind { flag, .. }, Limit { limit, burst, burst_seconds }) in
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

/// What of a volume's limits is to become other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Change {
    /// In the order of [`KINDS`]: the limit and its burst, where one is given.
    pub(crate) each: [(Option<u64>, Option<u64>); 6],
    /// Of every burst that is given.
    pub(crate) burst_seconds: Option<u64>,
}

impl Change {
    /// Nothing is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.each == Self::default().each
    }

    /// What can be said of it alone.
    ///
    /// # Errors
    /// No volume could get these.
    pub(crate) fn check(&self) -> Result<(), Error> {
        for (Kind { flag, .. }, (limit, burst)) in KINDS.iter().zip(self.each) {
            if limit == Some(0) && burst.is_some_and(|burst| burst > 0) {
                let why = format!("--burst-{flag} needs a limit, and --{flag} is 0");
                return Err(Error::Limits { why });
            }
        }
        // A burst whose limit is not named is checked when that is known.
        let named = Limits::of(self.each.map(|(limit, burst)| {
            let burst = burst.unwrap_or_default();
            let burst_seconds = if burst > 0 { self.burst_seconds.unwrap_or(1) } else { 0 };
            Limit { limit: limit.unwrap_or_default(), burst, burst_seconds }
        }));
        named.check().map_err(|why| Error::Limits { why })
    }

    /// The limits of a new volume.
    ///
    /// # Errors
    /// A burst has no limit.
    pub(crate) fn alone(&self) -> Result<Limits, Error> {
        self.applied(&Limits::default()).map_err(|why| Error::Limits { why })
    }

    /// What becomes of `present`: what is not given stays. A limit that goes takes its burst with
    /// it.
    ///
    /// # Errors
    /// What is given does not go together with what is there.
    pub(crate) fn of(&self, volume: &VolumeId, present: &Limits) -> Result<Limits, Error> {
        self.applied(present)
            .map_err(|why| Error::LimitsConflict { volume: volume.to_string(), why })
    }

    fn applied(&self, present: &Limits) -> Result<Limits, String> {
        let mut all = present.all();
        for ((limit, burst), (is, Kind { flag, .. })) in
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
        let limits = Limits::of(all);
        limits.check().map(|()| limits)
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
