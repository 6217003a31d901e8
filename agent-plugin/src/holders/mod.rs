//! Finds the holders of a disk in the guest: processes, mounts, swap, devices made of it, loop
//! devices over it.
//!
//! This only names them. Whether a disk is claimed is decided by an exclusive open
//! ([`BlockDevice::claim`](crate::block::BlockDevice::claim)), which fails for mounts, device
//! mapper, md and swap alike, in whatever namespace they are; it does not fail for a process or a
//! loop device that merely has the disk open, and these are found here. The kernel does not show a
//! mapping of a device whose descriptor was closed, nor a descriptor that is in transit in a socket
//! or that is registered with io_uring.
//!
//! A volume whose file system is mounted for its container has further holders: whatever uses that
//! file system, in whatever namespace. The mount of the container itself is none.
//!
//! A scan ends at its deadline, whatever the processes of a container do to make it long, and says
//! whether it is complete.
//!
//! | module | does |
//! |---|---|
//! | `disk` | a disk to look for, with its partitions |
//! | `found` | a holder that was found, and how its release can be noticed |
//! | `scan` | the result of a scan, and the time that it has |
//! | `process`, `mount`, `swap`, `block` | find one kind of holder each |
//! | `own` | the mounts that containers have of their volumes, and what is on them |
//! | `place` | uses of a mounted file system without a descriptor: directories, mappings |
//! | `task`, `table` | processes and their threads; a table of descriptors |
//! | `watch` | waits until a holder may have released the disk |

mod block;
mod disk;
mod found;
mod mount;
mod own;
mod place;
mod process;
mod scan;
mod swap;
mod table;
mod task;
mod watch;

use std::time::Instant;

use crate::{error::Result, namespace::Target};

pub use disk::{Disk, OwnMount};
pub use found::Found;
pub use scan::{Cost, Scan};
pub(crate) use task::try_kcmp;
pub use watch::{Waited, Watch};
#[cfg(feature = "fuzz")]
pub(crate) use {own::is_layer, place::mapping, swap::devices as swap_devices};

/// Which holders to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only holders that do not claim the disk, for a disk that we have claimed.
    Opened,
    /// All.
    All,
}

/// Finds the holders of `disks` until `deadline`. Each is assigned to one of `containers` by its
/// namespace or its cgroup.
///
/// # Errors
/// `/proc` or sysfs cannot be read. Whatever disappears in the meantime is not a holder.
pub fn find(
    disks: &[Disk],
    containers: &[&Target],
    scope: Scope,
    deadline: Instant,
) -> Result<Scan> {
    if disks.is_empty() {
        return Ok(Scan::Complete(Vec::new()));
    }
    let mut budget = scan::Budget::until(deadline);
    let pids = task::processes()?;
    // What a container can make most of comes last.
    let mut devices = Vec::new();
    if scope == Scope::All {
        devices.extend(block::above(disks)?);
        devices.extend(swap::swaps(disks)?);
    }
    devices.extend(block::loops(disks, &mut budget)?);
    let mut mounts = mount::Search::new(disks, containers);
    if scope == Scope::All {
        mounts.small(&pids, &mut budget);
    }
    let uses = place::Search::new(disks, containers).all(&pids, &mut budget);
    let mut found = process::openers(&pids, disks, containers, &mut budget);
    mounts.large(&mut budget);
    // One line for each process is enough.
    let is_known = |found: &[Found], new: &Found| {
        let (serial, pid) = (&new.holder.serial, new.holder.pid);
        found.iter().any(|found| found.holder.serial == *serial && found.holder.pid == pid)
    };
    for new in uses {
        if !is_known(&found, &new) {
            found.push(new);
        }
    }
    found.extend(mounts.found);
    found.extend(devices);
    Ok(budget.end(found))
}

/// Adds an unknown holder for each of the disks `claimed` by another, where no holder was found
/// that claims it.
pub fn add_unknown<'a>(found: &mut Vec<Found>, claimed: impl Iterator<Item = &'a Disk>) {
    for disk in claimed {
        let is_claim =
            |found: &Found| found.holder.serial == disk.serial && found.holder.kind.claims();
        if !found.iter().any(is_claim) {
            found.push(Found::unknown(disk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{found::Trace, *};
    use crate::{block::DeviceNumber, holder::HolderKind};

    fn disk() -> Disk {
        let number = DeviceNumber { major: 8, minor: 0 };
        let devices = vec![("sda".into(), number)];
        Disk { serial: "s".into(), path: "/dev/xvda".into(), devices, mounted: None }
    }

    #[test]
    fn a_claim_without_a_visible_holder_has_an_unknown_one() {
        let disk = disk();
        let process = Found::new(&disk, HolderKind::Process, "/dev/xvda".into(), Trace::Nothing);
        let mut found = vec![process];
        add_unknown(&mut found, [&disk].into_iter());
        assert_eq!(found.len(), 2, "a process does not claim");
        let mut found = vec![Found::new(&disk, HolderKind::Mount, "/mnt".into(), Trace::Nothing)];
        add_unknown(&mut found, [&disk].into_iter());
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_hostile_name_is_bounded_and_escaped() {
        let mut found = Found::new(&disk(), HolderKind::Process, "é".repeat(4096), Trace::Nothing);
        assert!(found.holder.detail.len() < 210);
        found.holder.command = "a\u{1b}[2J\n".into();
        found.holder.detail = "\u{202e}/dev".into();
        assert_eq!(found.holder.to_string(), "process 0 (a\\u{1b}[2J\\n) with \\u{202e}/dev");
    }
}
