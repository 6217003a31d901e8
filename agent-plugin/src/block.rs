//! A SCSI disk as a block device: its number, and its identity by serial, size and read-only state.
//!
//! The identity is never the kernel's name (`sda`): names are reused. It is the unit serial number
//! of [VPD page 0x80](https://docs.kernel.org/admin-guide/abi-testing.html) (`vpd_pg80` in sysfs).

use std::{fmt, fs::File, os::fd::AsRawFd as _, path::PathBuf, str::FromStr};

use nix::{errno::Errno, fcntl::OFlag};

use crate::{
    disk_directory::DiskDirectory,
    error::{Error, Result},
    node::open_block_device,
    scsi::ScsiDevice,
    sysfs,
};

/// The number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Of the driver.
    pub major: u32,
    /// Of the device.
    pub minor: u32,
}

impl DeviceNumber {
    /// From `st_rdev`.
    pub fn from_raw(raw: u64) -> DeviceNumber {
        DeviceNumber { major: libc::major(raw), minor: libc::minor(raw) }
    }

    /// For `mknod`.
    pub fn to_raw(self) -> u64 {
        libc::makedev(self.major, self.minor)
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once(':').unwrap_or((text, ""));
        let number = |text: &str| text.parse::<u32>();
        Ok(DeviceNumber { major: number(major)?, minor: number(minor)? })
    }
}

/// A whole SCSI disk, never a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Its SCSI device.
    pub device: ScsiDevice,
    /// The kernel's name, "sda".
    pub name: String,
    /// Its number.
    pub number: DeviceNumber,
}

impl BlockDevice {
    /// The disk at a SCSI device. `None` while there is no device, or no disk bound to it yet.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub fn at(device: ScsiDevice) -> Result<Option<BlockDevice>> {
        DiskDirectory::open(device)?.map_or(Ok(None), |directory| directory.disk())
    }

    /// Writes back what the guest's caches hold of the disk and its partitions, mounted file
    /// systems included, without a claim.
    ///
    /// # Errors
    /// The disk refuses a write. The other partitions are written back anyway.
    pub fn write_back(&self) -> Result<()> {
        let names = sysfs::names(&PathBuf::from(format!("/sys/class/block/{}", self.name)))?;
        let partitions = names.iter().filter(|name| name.starts_with(&self.name));
        let partition = |name: &String| {
            let number = sysfs::read(&PathBuf::from(format!("/sys/class/block/{name}/dev")))?;
            // One that is gone has nothing to write back.
            number.map_or(Ok(()), |number| write_back(name, number))
        };
        // The whole disk comes last, and flushes the disk's own cache.
        let done = partitions.map(partition).fold(Ok(()), Result::and);
        done.and(write_back(&self.name, self.number))
    }

    /// Claims the disk by an exclusive open.
    ///
    /// # Errors
    /// [`Error::Busy`] where it is mounted, or held by device mapper, md, swap or another claim.
    pub fn claim(&self) -> Result<Claim> {
        // For reading: that is enough for a claim and for a flush, and udev probes a disk again
        // when a descriptor is closed that could write.
        match open_block_device(&self.name, self.number, OFlag::O_RDONLY | OFlag::O_EXCL) {
            Ok(file) => Ok(Claim { file, name: self.name.clone() }),
            Err(Errno::EBUSY) => {
                Err(Error::Busy { device: self.name.clone(), holders: Vec::new() }.into())
            }
            Err(errno) => Err(Error::system("open", &self.name.as_str())(errno)),
        }
    }
}

/// An exclusive open of a disk: while it lives, a mount or a claim by another process fails.
#[derive(Debug)]
pub struct Claim {
    file: File,
    name: String,
}

impl Claim {
    /// Duplicates the claim: the disk is free when both are dropped.
    ///
    /// # Errors
    /// The process has too many descriptors.
    pub fn try_clone(&self) -> Result<Claim> {
        let file = self.file.try_clone().map_err(Error::system("fcntl", &self.name.as_str()))?;
        Ok(Claim { file, name: self.name.clone() })
    }

    /// Writes back what the guest's page cache holds, and flushes the disk's own cache.
    ///
    /// # Errors
    /// The disk refuses a write, or has refused an earlier one that was not reported to any
    /// process. The kernel reports that once.
    pub fn flush(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| {
            let subject = format!(
                "{}, where not all that was written is saved (force detaches it anyway),",
                self.name
            );
            Error::system("fsync", &subject)(error)
        })
    }
}

#[expect(unsafe_code, reason = "BLKFLSBUF has no safe wrapper in libc or nix")]
fn write_back(name: &str, number: DeviceNumber) -> Result<()> {
    const BLKFLSBUF: libc::c_ulong = 0x1261;
    let opened = open_block_device(name, number, OFlag::O_RDONLY);
    let file = opened.map_err(Error::system("open", &name))?;
    // Unlike fsync, it writes back a file system that is mounted on the device, in whatever
    // namespace.
    // SAFETY: a descriptor and two numbers are passed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKFLSBUF as _, 0) };
    Errno::result(result).map_err(Error::system("ioctl(BLKFLSBUF)", &name))?;
    file.sync_all().map_err(Error::system("fsync", &name))
}

/// Reads the serial of a SCSI disk; `None` where it has none or is gone. The disk need not have a
/// name yet.
///
/// # Errors
/// sysfs cannot be read.
pub fn serial(device: ScsiDevice) -> Result<Option<String>> {
    DiskDirectory::open(device)?.map_or(Ok(None), |directory| directory.serial())
}

/// The serial in VPD page 0x80: its length is in bytes 2 and 3, then it follows, padded with blanks
/// at either end.
pub fn serial_of_page_80(page: &[u8]) -> Option<String> {
    let (header, rest) = page.split_at_checked(4)?;
    if header[1] != 0x80 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let serial = std::str::from_utf8(rest.get(..length)?).ok()?.trim_matches([' ', '\0']);
    (!serial.is_empty()).then(|| serial.to_owned())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"\x00\x80\x00\x0478ab", Some("78ab"))]
    #[case(b"\x00\x80\x00\x08  78ab  ", Some("78ab"))]
    #[case::longer_file(b"\x00\x80\x00\x0278ab", Some("78"))]
    #[case::cut_short(b"\x00\x80\x00\x0578ab", None)]
    #[case::other_page(b"\x00\x83\x00\x0478ab", None)]
    #[case::blank(b"\x00\x80\x00\x04    ", None)]
    #[case::no_header(b"\x00\x80\x00", None)]
    #[case::not_text(b"\x00\x80\x00\x02\xff\xfe", None)]
    fn the_serial_is_read_from_page_80(#[case] page: &[u8], #[case] serial: Option<&str>) {
        assert_eq!(serial_of_page_80(page).as_deref(), serial);
    }

    #[rstest]
    #[case("8:16", Some((8, 16)))]
    #[case("259:1048575", Some((259, 1_048_575)))]
    #[case("8", None)]
    #[case("8:", None)]
    #[case("8:16:1", None)]
    fn device_numbers_parse(#[case] text: &str, #[case] number: Option<(u32, u32)>) {
        let parsed = text.parse::<DeviceNumber>().ok();
        assert_eq!(parsed.map(|number| (number.major, number.minor)), number);
        if let Some(number) = parsed {
            assert_eq!(DeviceNumber::from_raw(number.to_raw()), number);
        }
    }
}
