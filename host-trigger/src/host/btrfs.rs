//! The devices of a [Btrfs](https://docs.kernel.org/filesystems/btrfs.html) file system, from
//! `/sys/fs/btrfs`. A mount names only one of them.

use std::{io, path::Path};

use super::{
    block_device::SYSFS,
    kernel_text::{self, entries},
};

/// Returns the numbers of all devices of the file system that has the device `number`.
pub(crate) fn devices_with(number: u64) -> io::Result<Vec<u64>> {
    devices_in(&Path::new(SYSFS).join("fs/btrfs"), number)
}

fn devices_in(file_systems: &Path, number: u64) -> io::Result<Vec<u64>> {
    for file_system in entries(file_systems)? {
        let mut numbers = Vec::new();
        // Beside the file systems there is a directory of features.
        for device in entries(&file_system.join("devices"))? {
            let file = device.join("dev");
            let number = kernel_text::device_number(&kernel_text::read(&file)?);
            let missing = || kernel_text::malformed(&file, "it has no device number");
            numbers.push(number.ok_or_else(missing)?);
        }
        if numbers.contains(&number) {
            return Ok(numbers);
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn all_devices_of_a_file_system_are_found_by_one_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let add = |device: &str, number: &str| {
            let device = directory.path().join(device);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("dev"), number).unwrap();
        };
        add("uuid-1/devices/sda", "8:0\n");
        add("uuid-1/devices/sdb", "8:16\n");
        add("uuid-2/devices/sdc", "8:32\n");
        fs::create_dir_all(directory.path().join("features")).unwrap();
        let mut found = devices_in(directory.path(), makedev(8, 16)).unwrap();
        found.sort_unstable();
        assert_eq!(found, [makedev(8, 0), makedev(8, 16)]);
        assert_eq!(devices_in(directory.path(), makedev(8, 48)).unwrap(), [0; 0]);
        add("uuid-2/devices/sdc", "?");
        assert!(devices_in(directory.path(), makedev(8, 48)).is_err());
    }
}
