//! A disk whose holders are to be found, with its partitions
//! ([sysfs-block](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block)).

use std::path::{Path, PathBuf};

use crate::{
    block::{BlockDevice, DeviceNumber},
    error::Result,
    sysfs,
};

/// A disk whose holders are to be found.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The volume's id.
    pub serial: String,
    /// The device path in its container.
    pub path: String,
    /// The kernel's name and number of the disk first, then those of its partitions.
    pub(super) devices: Vec<(String, DeviceNumber)>,
}

impl Disk {
    /// # Errors
    /// sysfs cannot be read.
    pub fn new(serial: &str, path: &str, disk: &BlockDevice) -> Result<Disk> {
        let mut devices = vec![(disk.name.clone(), disk.number)];
        devices.extend(partitions(&disk.name)?);
        Ok(Disk { serial: serial.to_owned(), path: path.to_owned(), devices })
    }

    /// Whether it is the disk or a partition of it.
    pub(super) fn has(&self, number: DeviceNumber) -> bool {
        self.devices.iter().any(|(_, own)| *own == number)
    }
}

/// The directory of a block device in sysfs.
pub(super) fn directory(name: &str) -> PathBuf {
    Path::new("/sys/class/block").join(name)
}

/// The partitions of the disk `name`, with their names.
fn partitions(name: &str) -> Result<Vec<(String, DeviceNumber)>> {
    let directory = directory(name);
    let mut found = Vec::new();
    for entry in sysfs::names(&directory)?.into_iter().filter(|entry| entry.starts_with(name)) {
        if let Some(number) = sysfs::read(&directory.join(&entry).join("dev"))? {
            found.push((entry, number));
        }
    }
    Ok(found)
}
