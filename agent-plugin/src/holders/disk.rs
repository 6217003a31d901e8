//! A disk whose holders are to be found, with its partitions
//! ([sysfs-block](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block)).

use std::path::{Path, PathBuf};

use crate::{
    block::{BlockDevice, DeviceNumber},
    error::Result,
    mounted::MountIdentity,
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
    /// Where its own file system is mounted for the container.
    pub(super) mounted: Option<OwnMount>,
}

/// The mount that a container has of a volume: itself no holder, but what is on it.
#[derive(Debug, Clone)]
pub struct OwnMount {
    /// Whose it is.
    pub identity: MountIdentity,
    /// The inode of the container's mount namespace.
    pub namespace: Option<u64>,
    /// `st_dev` of its files, and what the kernel shows in its place.
    pub numbers: Vec<DeviceNumber>,
}

impl Disk {
    /// # Errors
    /// sysfs cannot be read.
    pub fn new(serial: &str, path: &str, disk: &BlockDevice) -> Result<Disk> {
        let mut devices = vec![(disk.name.clone(), disk.number)];
        devices.extend(partitions(&disk.name)?);
        Ok(Disk { serial: serial.to_owned(), path: path.to_owned(), devices, mounted: None })
    }

    /// The volume is used as a mount, and not as a device.
    #[must_use]
    pub fn mounted(self, mounted: OwnMount) -> Disk {
        Disk { mounted: Some(mounted), ..self }
    }

    /// Whether files with this `st_dev` are on the volume's own file system.
    pub(super) fn has_files_of(&self, number: DeviceNumber) -> bool {
        self.mounted.as_ref().is_some_and(|mounted| mounted.numbers.contains(&number))
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
