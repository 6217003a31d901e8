//! What a block device consists of, from
//! [sysfs](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block): the disk of a
//! partition, the devices below device mapper, md and DRBD (`slaves`), and the other paths to a
//! disk (`wwid`). What cannot be read is an error: a caller that must not miss a device would
//! otherwise take it for none.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    ops::Range,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::{major, makedev, minor};

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
        Ok(Self { number, directory: fs::canonicalize(link)? })
    }

    fn at(directory: PathBuf) -> io::Result<Self> {
        let number = parse_number(&fs::read(directory.join("dev"))?)
            .ok_or_else(|| io::Error::other(format!("{} has no number", directory.display())))?;
        Ok(Self { number, directory })
    }

    /// Returns the path of its device node, as the kernel names it.
    pub(crate) fn node(&self) -> io::Result<PathBuf> {
        let event = fs::read(self.directory.join("uevent"))?;
        let mut lines = event.split(|&byte| byte == b'\n');
        let name = lines.find_map(|line| line.strip_prefix(b"DEVNAME="));
        let name = name.ok_or_else(|| io::Error::other("the kernel has no name for it"))?;
        Ok(Path::new("/dev").join(OsStr::from_bytes(name)))
    }

    /// Whether it is a partition.
    fn is_partition(&self) -> bool {
        self.directory.join("partition").exists()
    }

    /// Returns the disk that it is a partition of, or itself.
    pub(crate) fn disk(&self) -> io::Result<Self> {
        match (self.is_partition(), self.directory.parent()) {
            (true, Some(disk)) => Self::at(disk.to_owned()),
            _ => Ok(self.clone()),
        }
    }

    /// Returns which bytes of its disk it has.
    pub(crate) fn range(&self) -> io::Result<Range<u64>> {
        if !self.is_partition() {
            return Ok(0..u64::MAX);
        }
        // Sysfs counts sectors of 512 bytes, whatever the device's own are.
        let [start, size] = ["start", "size"].map(|name| self.bytes_of(name));
        let start = start?;
        Ok(start..start.saturating_add(size?))
    }

    fn bytes_of(&self, name: &str) -> io::Result<u64> {
        let text = fs::read_to_string(self.directory.join(name))?;
        let sectors: u64 = text.trim_end().parse().map_err(io::Error::other)?;
        Ok(sectors.saturating_mul(512))
    }

    /// Returns the devices that it or its disk is built on.
    pub(crate) fn slaves(&self) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        for device in [self, &self.disk()?] {
            for slave in entries(&device.directory.join("slaves"))? {
                let directory = fs::canonicalize(slave)?;
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
        let (disk, range) = (self.disk()?, self.range()?);
        let Some(name) = disk.world_wide_name() else { return Ok(Vec::new()) };
        let others = disks()?.iter().filter(|other| other.name == name && other.disk != disk);
        let mut found = Vec::new();
        for NamedDisk { disk: other, .. } in others {
            let same = other.partitions()?.into_iter().find(|partition| {
                self.is_partition() && partition.range().is_ok_and(|known| known == range)
            });
            found.push(same.unwrap_or_else(|| other.clone()));
        }
        Ok(found)
    }

    fn partitions(&self) -> io::Result<Vec<Self>> {
        let inside = entries(&self.directory)?.into_iter();
        inside.filter(|entry| entry.join("partition").exists()).map(Self::at).collect()
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
    let named = entries(&sysfs.join("block"))?.into_iter().filter_map(|entry| {
        // A disk that has disappeared since, and a hidden one, which has no number: no process can
        // open either.
        let disk = fs::canonicalize(entry).and_then(BlockDevice::at).ok()?;
        Some(NamedDisk { name: disk.world_wide_name()?, disk })
    });
    Ok(named.collect())
}

/// Reads a device number, such as `8:16`.
pub(crate) fn parse_number(text: &[u8]) -> Option<u64> {
    let (major, minor) = std::str::from_utf8(text).ok()?.trim_end().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// Returns the paths in `directory`; none if it does not exist.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Returns the bytes for which the kernel prints `\` and three octal digits, in `/proc/swaps` as in
/// `/proc/self/mountinfo`.
pub(crate) fn unescape(text: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.first_chunk::<3>().filter(|_| first == b'\\');
        let value =
            digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
#[path = "block_device_tests.rs"]
pub(crate) mod tests;
