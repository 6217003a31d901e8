//! The disks of this host's root file system, by number: whoever can write one of them owns the
//! host (CVE-2026-24054 was a runtime that handed one to a VM).

use std::{fs, os::unix::fs::MetadataExt};

use crate::{block_sysfs, holders::Held};

/// Is `number` the device of the root file system, one that it is made of, or a disk or any
/// partition of a disk that it is on?
pub(crate) fn is_root(number: u64) -> bool {
    let whole = block_sysfs::whole_disk(number);
    roots()
        .into_iter()
        .any(|root| root == number || block_sysfs::disks_below(root).contains(&whole))
}

/// The devices of the root file system, as this process and as the first process of the host see
/// it. A file system of several devices has no number of its own, and names one of them as its
/// source.
fn roots() -> Vec<u64> {
    let numbers =
        ["/", "/proc/1/root/"].map(|root| fs::metadata(root).map(|metadata| metadata.dev()));
    let mounts = ["/proc/self/mountinfo", "/proc/1/mountinfo"].map(fs::read_to_string);
    let sources = mounts.iter().flatten().filter_map(|mounts| source_of_root(mounts));
    numbers.into_iter().flatten().chain(sources).collect()
}

fn source_of_root(mounts: &str) -> Option<u64> {
    // The last one is on top.
    let root = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/"))?;
    let source = root.split_once(" - ")?.1.split(' ').nth(1)?;
    match Held::at(source)? {
        Held::Block(number) => Some(number),
        Held::File(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn the_root_file_system_is_recognised_with_its_disk() {
        let root = fs::metadata("/").unwrap().dev();
        assert!(is_root(root) && is_root(block_sysfs::whole_disk(root)));
        assert!(!is_root(makedev(255, 255)));
    }

    #[test]
    fn the_topmost_root_counts_and_only_a_device_has_a_number() {
        assert_eq!(
            source_of_root(
                "1 0 0:2 / / rw - rootfs rootfs rw\n2 1 0:3 / /dev rw - tmpfs /dev/null rw\n"
            ),
            None
        );
        assert_eq!(source_of_root("1 0 0:2 / /sub rw - btrfs /dev/null rw\n"), None);
    }
}
