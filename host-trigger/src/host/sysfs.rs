//! Relations between block devices, from
//! [sysfs](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block): a disk and its
//! partitions, a mapping and the devices below it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use super::block_device::parse_number;

/// Returns the directory of the device `number`.
pub(crate) fn directory(number: u64) -> PathBuf {
    let link = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    fs::canonicalize(&link).unwrap_or_else(|_| link.into())
}

/// Returns the disk that `number` is a partition of, or `number` itself.
pub(crate) fn whole_disk(number: u64) -> u64 {
    let directory = directory(number);
    let whole =
        directory.join("partition").exists().then(|| device_number(&directory.join("../dev")));
    whole.flatten().unwrap_or(number)
}

/// Returns `number`, its partitions, and the disk that it is a partition of: a use of one of them
/// conflicts with a use of `number`. (Two partitions of one disk do not conflict.)
pub(crate) fn family(number: u64) -> Vec<u64> {
    let directory = directory(number);
    let inside = names(&directory).map(|name| directory.join(name));
    let partitions = inside.filter(|entry| entry.join("partition").exists());
    let mut family = vec![number];
    family.extend(partitions.filter_map(|entry| device_number(&entry.join("dev"))));
    let whole = whole_disk(number);
    family.extend((whole != number).then_some(whole));
    family
}

/// Returns the disks that `number` is on, through all levels of partitions, device mapper and md.
pub(crate) fn disks_below(number: u64) -> Vec<u64> {
    let (mut found, mut next) = (Vec::new(), vec![number]);
    while let Some(number) = next.pop() {
        let whole = whole_disk(number);
        if found.contains(&whole) {
            continue;
        }
        found.push(whole);
        for directory in [directory(number), directory(whole)] {
            let slaves = directory.join("slaves");
            next.extend(
                names(&slaves).filter_map(|name| device_number(&slaves.join(name).join("dev"))),
            );
        }
    }
    found
}

/// Reads the device number, such as `8:16`, from a `dev` file.
fn device_number(file: &Path) -> Option<u64> {
    parse_number(&fs::read(file).ok()?)
}

/// Returns the names in `directory`; none if it does not exist.
pub(crate) fn names(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn a_device_is_in_its_own_family_and_on_its_own_disk() {
        let root = fs::metadata("/").unwrap().dev();
        assert!(family(root).contains(&root) && family(root).contains(&whole_disk(root)));
        assert!(disks_below(root).contains(&whole_disk(root)));
    }

    #[test]
    fn a_device_that_does_not_exist_is_its_only_relative() {
        let absent = makedev(4095, 7);
        assert_eq!(
            (whole_disk(absent), family(absent), disks_below(absent)),
            (absent, vec![absent], vec![absent])
        );
    }
}
