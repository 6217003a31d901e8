//! What a block device consists of, from
//! [sysfs](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block): the disk of a
//! partition, the devices below device mapper, md and DRBD (`slaves`), and the other paths to a
//! disk (`wwid`), the devices on top (`holders`). What cannot be read is an error: a caller that
//! must not miss a device would otherwise take it for none.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, minor};

use super::kernel_text::{self, entries};

/// Where sysfs is mounted.
pub(crate) const SYSFS: &str = "/sys";

/// A block device and its directory in sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    pub(crate) number: u64,
    directory: PathBuf,
}

impl BlockDevice {
    /// Finds the device `number` in the sysfs that is mounted on `sysfs`.
    pub(crate) fn find(sysfs: &Path, number: u64) -> io::Result<Self> {
        let link = sysfs.join(format!("dev/block/{}:{}", major(number), minor(number)));
        let directory = fs::canonicalize(&link).map_err(kernel_text::of(link))?;
        Ok(Self { number, directory })
    }

    /// Returns all disks. One that disappears meanwhile is left out.
    pub(crate) fn disks(sysfs: &Path) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in entries(&sysfs.join("block"))? {
            match fs::canonicalize(&entry).map_err(kernel_text::of(entry)).and_then(Self::at) {
                Ok(disk) => found.push(disk),
                // It has disappeared, or it is hidden and has no number: no process can open it.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Finds the device of the number `number`; `None` if sysfs is there and has none.
    pub(crate) fn find_any(sysfs: &Path, number: u64) -> io::Result<Option<Self>> {
        match Self::find(sysfs, number) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let all = sysfs.join("dev/block");
                fs::metadata(&all).map_err(kernel_text::of(all))?;
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    fn at(directory: PathBuf) -> io::Result<Self> {
        let file = directory.join("dev");
        let number = kernel_text::device_number(&kernel_text::read(&file)?)
            .ok_or_else(|| kernel_text::malformed(file, "it has no device number"))?;
        Ok(Self { number, directory })
    }

    /// Its directory in sysfs.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The kernel's name, such as `sda1`.
    pub(crate) fn name(&self) -> &OsStr {
        self.directory.file_name().unwrap_or_default()
    }

    /// Returns the path of its device node, as the kernel names it.
    pub(crate) fn node(&self) -> io::Result<PathBuf> {
        let file = self.directory.join("uevent");
        let event = kernel_text::read(&file)?;
        let mut lines = event.split(|&byte| byte == b'\n');
        let name = lines.find_map(|line| line.strip_prefix(b"DEVNAME="));
        let name = name.ok_or_else(|| kernel_text::malformed(file, "it has no DEVNAME"))?;
        Ok(Path::new("/dev").join(OsStr::from_bytes(name)))
    }

    /// Whether it is a partition.
    fn is_partition(&self) -> io::Result<bool> {
        is_partition(&self.directory)
    }

    /// Returns the disk that it is a partition of, or itself.
    pub(crate) fn disk(&self) -> io::Result<Self> {
        match (self.is_partition()?, self.directory.parent()) {
            (true, Some(disk)) => Self::at(disk.to_owned()),
            _ => Ok(self.clone()),
        }
    }

    /// Returns which bytes of its disk it has.
    pub(crate) fn range(&self) -> io::Result<Range<u64>> {
        if !self.is_partition()? {
            return Ok(0..u64::MAX);
        }
        // Sysfs counts sectors of 512 bytes, whatever the device's own are.
        let [start, size] = ["start", "size"].map(|name| self.bytes_of(name));
        let start = start?;
        Ok(start..start.saturating_add(size?))
    }

    fn bytes_of(&self, name: &str) -> io::Result<u64> {
        let file = self.directory.join(name);
        let sectors: Option<u64> = kernel_text::number(&kernel_text::read(&file)?);
        let sectors = sectors.ok_or_else(|| kernel_text::malformed(file, "it has no number"))?;
        Ok(sectors.saturating_mul(512))
    }

    /// Returns the devices that it or its disk is built on.
    pub(crate) fn slaves(&self) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for device in [self, &self.disk()?] {
            for slave in entries(&device.directory.join("slaves"))? {
                let directory = fs::canonicalize(&slave).map_err(kernel_text::of(slave))?;
                if !found.iter().any(|known: &Self| known.directory == directory) {
                    found.push(Self::at(directory)?);
                }
            }
        }
        Ok(found)
    }

    /// Returns which of `disks` are the same disk as this one, by the name that the disk itself
    /// reports; for a partition, the same one there, or the whole disk if it has none like it.
    /// `disks` are read only for a disk that reports its name.
    pub(crate) fn other_paths<'a>(
        &self,
        disks: impl FnOnce() -> io::Result<&'a [NamedDisk]>,
    ) -> io::Result<Vec<Self>> {
        let (disk, range, is_partition) = (self.disk()?, self.range()?, self.is_partition()?);
        let Some(name) = disk.world_wide_name() else { return Ok(Vec::new()) };
        let others = disks()?.iter().filter(|other| other.name == name && other.disk != disk);
        let mut found = Vec::new();
        for NamedDisk { disk: other, .. } in others {
            let same = other.partitions()?.into_iter().find(|partition| {
                is_partition && partition.range().is_ok_and(|known| known == range)
            });
            found.push(same.unwrap_or_else(|| other.clone()));
        }
        Ok(found)
    }

    fn partitions(&self) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in entries(&self.directory)? {
            if entry.is_dir() && is_partition(&entry)? {
                found.push(Self::at(entry)?);
            }
        }
        Ok(found)
    }

    /// Returns it, its partitions, and the disk that it is a partition of: a use of one of them
    /// conflicts with a use of it. (Two partitions of one disk do not conflict.)
    pub(crate) fn family(&self) -> io::Result<Vec<Self>> {
        let mut family = vec![self.clone()];
        family.extend(self.partitions()?);
        let disk = self.disk()?;
        family.extend((disk.number != self.number).then_some(disk));
        Ok(family)
    }

    /// Returns the names of the devices that are built on it.
    pub(crate) fn holders(&self) -> io::Result<Vec<OsString>> {
        let holders = entries(&self.directory.join("holders"))?.into_iter();
        Ok(holders.filter_map(|path| path.file_name().map(OsStr::to_owned)).collect())
    }

    /// Returns the disk's NAA or EUI-64 designator. Designators of other types (`t10.`, `scsi.`)
    /// are made of the vendor's text and a serial number, which is not always unique.
    fn world_wide_name(&self) -> Option<Vec<u8>> {
        let [scsi, nvme] = ["device/wwid", "wwid"].map(|name| self.directory.join(name));
        let name = fs::read(scsi).or_else(|_| fs::read(nvme)).ok()?;
        let name = name.trim_ascii().to_ascii_lowercase();
        let digits = name.strip_prefix(b"naa.").or_else(|| name.strip_prefix(b"eui."))?;
        digits.iter().any(|&digit| digit != b'0').then_some(name)
    }
}

/// A disk that reports which disk it is.
#[derive(Debug)]
pub(crate) struct NamedDisk {
    name: Vec<u8>,
    disk: BlockDevice,
}

/// Returns the disks of `sysfs` that report which disk they are.
pub(crate) fn named_disks(sysfs: &Path) -> io::Result<Vec<NamedDisk>> {
    let disks = BlockDevice::disks(sysfs)?.into_iter();
    Ok(disks.filter_map(|disk| Some(NamedDisk { name: disk.world_wide_name()?, disk })).collect())
}

/// Whether the device of this directory is a partition.
fn is_partition(directory: &Path) -> io::Result<bool> {
    let file = directory.join("partition");
    file.try_exists().map_err(kernel_text::of(file))
}

#[cfg(test)]
#[path = "block_device_tests.rs"]
pub(crate) mod tests;
