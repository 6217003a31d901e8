//! The disks of this host's root file system, by device number. A guest that can write one of them
//! controls the host (CVE-2026-24054: a runtime passed one to a VM).

use std::{fs, os::unix::fs::MetadataExt};

use super::{
    mountinfo::{self, Mount},
    sysfs,
};

/// Whether the device `number` belongs to the root file system: it is its device, one of the
/// devices that it consists of, a disk that it is on, or any partition of such a disk.
pub(crate) fn is_root(number: u64) -> bool {
    let whole = sysfs::whole_disk(number);
    roots().into_iter().any(|root| root == number || sysfs::disks_below(root).contains(&whole))
}

/// Whether the device `number` itself has the root file system, and not only its disk.
pub(crate) fn has_root(number: u64) -> bool {
    roots().contains(&number)
}

/// Returns the devices of the root file system, as this process and as the host's first process see
/// it. A file system that spans several devices has no device number of its own; its mount source
/// names one of them.
fn roots() -> Vec<u64> {
    let numbers =
        ["/", "/proc/1/root/"].map(|root| fs::metadata(root).map(|metadata| metadata.dev()));
    let tables = ["self", "1"].into_iter().filter_map(|pid| mountinfo::of(pid).ok());
    let sources = tables.filter_map(|mounts| source_of_root(&mounts));
    numbers.into_iter().flatten().chain(sources).collect()
}

fn source_of_root(mounts: &[Mount]) -> Option<u64> {
    // The last mount is on top.
    mounts.iter().rfind(|mount| mount.point == "/")?.source_number()
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn the_root_file_system_is_recognized_with_its_disk() {
        let root = fs::metadata("/").unwrap().dev();
        assert!(is_root(root) && is_root(sysfs::whole_disk(root)));
        assert!(!is_root(makedev(255, 255)));
    }

    #[test]
    fn the_topmost_root_is_decisive() {
        let device = "7:0 / / rw - ext4 /dev/loop0 rw\n";
        let covered = format!("1 0 {device}2 1 0:3 / / rw - tmpfs /dev/null rw\n");
        assert_eq!(source_of_root(&mountinfo::parse(&covered)), None);
        assert_eq!(
            source_of_root(&mountinfo::parse("1 0 0:2 / /sub rw - btrfs /dev/null rw\n")),
            None
        );
    }
}
