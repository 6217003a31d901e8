//! What a detach does where a disk has holders, and how long it waits for them.
//!
//! The guest may have udev, which opens a disk whenever it appears or changes, and runs programs
//! that do. Where all holders may be of that kind they get a grace period, also where the request
//! waits for none: they are no reason to refuse it.

use std::time::{Duration, Instant};

use crate::{
    error::Result,
    holders::{Found, Scan},
    log,
    text::{displayed, shown},
};

/// How long a scan for holders that lose the disk anyway may take.
const LONGEST_FORCED_SCAN: Duration = Duration::from_secs(2);

/// The grace period of short-lived holders: at most so long, and one part of so many of the
/// remaining time.
const LONGEST_GRACE: Duration = Duration::from_secs(5);
const GRACE_PART: u32 = 4;

/// What a detach does where a disk has holders.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DetachPolicy {
    /// Detach anyway.
    pub(crate) force: bool,
    /// How long to wait for them.
    pub(crate) wait: Duration,
}

impl DetachPolicy {
    /// Whether the detach waits for holders.
    pub(crate) fn waits(self) -> bool {
        !self.wait.is_zero()
    }

    /// How long to wait for holders.
    pub(super) fn patience(self, deadline: Instant) -> Patience {
        let now = Instant::now();
        if self.force {
            return Patience { until: now, grace: now };
        }
        let until = deadline.min(now + self.wait);
        Patience { until, grace: until.max(grace_until(deadline)) }
    }

    /// When a scan that begins now has to end. A container can make a scan as long as it likes, and
    /// what follows needs time, too: another scan and, where that does not end, the rollback. With
    /// force a scan only supplies names, and gets a small part.
    pub(super) fn scans_until(self, deadline: Instant) -> Instant {
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        now + if self.force { (left / 4).min(LONGEST_FORCED_SCAN) } else { left / 2 }
    }

    /// What a scan found. With force that is enough, complete or not.
    pub(super) fn known(self, scan: Scan) -> Result<Vec<Found>> {
        if !self.force {
            return scan.certain();
        }
        if let Scan::Partial(_, cost) = &scan {
            let cost = shown(&displayed(&cost));
            log::warn(format_args!("not every process was looked at before a forced detach{cost}"));
        }
        Ok(scan.found())
    }
}

/// Until when holders are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Any holder.
    until: Instant,
    /// Holders that may all be short-lived.
    grace: Instant,
}

impl Patience {
    /// Until when these are waited for. `None`: there is none, or they are not waited for, or not
    /// any more.
    pub(super) fn with(self, found: &[Found]) -> Option<Instant> {
        let until = match found {
            [] => return None,
            all if all.iter().all(|found| found.holder.may_be_short_lived()) => self.grace,
            _ => self.until,
        };
        (until > Instant::now()).then_some(until)
    }
}

fn grace_until(deadline: Instant) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    now + (left / GRACE_PART).min(LONGEST_GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::{BlockDevice, DeviceNumber},
        holder::HolderKind,
        holders::Disk,
        scsi::ScsiDevice,
    };

    fn holder(kind: HolderKind, container: &str) -> Found {
        let device = ScsiDevice::from_devpath("/devices/host0/target0:0:5/0:0:5:3/block/no-disk");
        let (device, name) = device.expect("the path of a disk");
        let number = DeviceNumber { major: 8, minor: 0 };
        let disk = BlockDevice { device, name: name.to_owned(), number };
        let mut found = Found::unknown(&Disk::new("s", "/dev/xvda", &disk).unwrap());
        found.holder.kind = kind;
        found.holder.container_id = container.to_owned();
        found
    }

    #[test]
    fn programs_of_the_guest_get_a_grace_period_and_all_others_what_the_request_grants() {
        let deadline = Instant::now() + Duration::from_secs(3600);
        let wait = Duration::from_secs(60);
        let patience = |force, wait| DetachPolicy { force, wait }.patience(deadline);
        let guest = holder(HolderKind::Process, "");
        let unknown = holder(HolderKind::Unknown, "");
        let seconds = |until: Option<Instant>| {
            until.map(|until| until.duration_since(Instant::now()).as_secs_f64().round())
        };
        for short_lived in
            [vec![guest.clone()], vec![unknown.clone()], vec![guest.clone(), unknown]]
        {
            assert_eq!(seconds(patience(false, Duration::ZERO).with(&short_lived)), Some(5.0));
            assert_eq!(seconds(patience(false, wait).with(&short_lived)), Some(60.0));
            assert_eq!(seconds(patience(true, Duration::ZERO).with(&short_lived)), None);
        }
        for staying in [
            holder(HolderKind::Process, "0123456789abcdef"),
            holder(HolderKind::Mount, ""),
            holder(HolderKind::Dm, ""),
            holder(HolderKind::Loop, ""),
        ] {
            let found = [guest.clone(), staying];
            assert_eq!(seconds(patience(false, Duration::ZERO).with(&found)), None, "{found:?}");
            assert_eq!(seconds(patience(false, wait).with(&found)), Some(60.0), "{found:?}");
        }
        assert_eq!(patience(false, wait).with(&[]), None, "there is nothing to wait for");
    }

    #[test]
    fn a_grace_period_is_a_part_of_the_remaining_time() {
        let soon = Instant::now() + Duration::from_secs(8);
        assert!(grace_until(soon) < soon - Duration::from_secs(5));
    }

    #[test]
    fn a_scan_leaves_time_for_what_follows() {
        let hour = Duration::from_secs(3600);
        let deadline = Instant::now() + hour;
        let slice = |force| {
            let policy = DetachPolicy { force, wait: Duration::ZERO };
            policy.scans_until(deadline).saturating_duration_since(Instant::now())
        };
        assert!(slice(false) <= hour / 2 && slice(false) > hour / 3);
        assert!(slice(true) <= LONGEST_FORCED_SCAN);
        let short = DetachPolicy { force: true, wait: Duration::ZERO };
        let deadline = Instant::now() + Duration::from_secs(4);
        assert!(short.scans_until(deadline) < deadline - Duration::from_secs(2));
    }
}
