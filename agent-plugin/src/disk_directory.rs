//! What sysfs shows of a SCSI device and of the disk that it is:
//! [sysfs-bus-scsi and
//! sysfs-block](https://docs.kernel.org/admin-guide/abi-testing.html). All of it is read from one
//! directory, so that it is one device's, and its long path is walked once.

use std::str::FromStr;

use crate::{
    block::{BlockDevice, serial_of_page_80},
    disk_stats::DiskStats,
    error::{BoxedError, Error, Result},
    scsi::ScsiDevice,
    sysfs::{self, Directory},
    text::{displayed, readable},
};

/// How much of an attribute a message shows.
const LONGEST: usize = 400;

/// The directory of a SCSI device.
#[derive(Debug)]
pub(crate) struct DiskDirectory {
    device: ScsiDevice,
    directory: Directory,
}

impl DiskDirectory {
    /// Opens it; `None` if the kernel has no such device.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub(crate) fn open(device: ScsiDevice) -> Result<Option<DiskDirectory>> {
        let directory = Directory::open(device.directory())?;
        Ok(directory.map(|directory| DiskDirectory { device, directory }))
    }

    /// Opens that of a disk.
    ///
    /// # Errors
    /// sysfs cannot be read, or the disk is gone.
    pub(crate) fn of(disk: &BlockDevice) -> Result<DiskDirectory> {
        sysfs::required(&disk.device.directory(), DiskDirectory::open(disk.device)?)
    }

    /// The serial that the device reports. `None`: it has none, or it is gone.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub(crate) fn serial(&self) -> Result<Option<String>> {
        let page = self.directory.read_bytes("vpd_pg80")?;
        Ok(page.as_deref().and_then(serial_of_page_80))
    }

    /// The disk. `None` while none is bound to the device yet.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub(crate) fn disk(&self) -> Result<Option<BlockDevice>> {
        let Some(name) = self.directory.names("block")?.into_iter().next() else { return Ok(None) };
        let number = self.directory.read(&format!("block/{name}/dev"))?;
        Ok(number.map(|number| BlockDevice { device: self.device, name, number }))
    }

    /// Capacity of the disk in bytes.
    ///
    /// # Errors
    /// sysfs cannot be read, or the disk is gone.
    pub(crate) fn size(&self, disk: &BlockDevice) -> Result<u64> {
        // Sectors of 512 bytes, whatever the disk's sector size.
        self.number::<u64>(disk, "size").map(|sectors| sectors.saturating_mul(512))
    }

    /// Whether the disk refuses writes.
    ///
    /// # Errors
    /// As of [`DiskDirectory::size`].
    pub(crate) fn read_only(&self, disk: &BlockDevice) -> Result<bool> {
        self.number::<u8>(disk, "ro").map(|flag| flag != 0)
    }

    /// The kernel's counters.
    ///
    /// # Errors
    /// As of [`DiskDirectory::size`].
    pub(crate) fn stats(&self, disk: &BlockDevice) -> Result<DiskStats> {
        let name = format!("block/{}/stat", disk.name);
        let text = self.required(&name)?;
        let stats = DiskStats::parse(&text).ok_or_else(|| self.malformed(&name, &text))?;
        Ok(DiskStats { errors: self.errors()?, ..stats })
    }

    /// The number of SCSI commands that failed since the device appeared. Those by which the kernel
    /// probes a disk are among them: they ask for what the disk need not support.
    ///
    /// # Errors
    /// As of [`DiskDirectory::size`].
    pub(crate) fn errors(&self) -> Result<u64> {
        const NAME: &str = "ioerr_cnt";
        let text = self.required(NAME)?;
        let count = text.strip_prefix(b"0x").and_then(|digits| str::from_utf8(digits).ok());
        let count = count.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        count.ok_or_else(|| self.malformed(NAME, &text))
    }

    fn number<T: FromStr>(&self, disk: &BlockDevice, attribute: &str) -> Result<T> {
        let name = format!("block/{}/{attribute}", disk.name);
        self.directory.required(&name, self.directory.read(&name)?)
    }

    fn required(&self, name: &str) -> Result<Vec<u8>> {
        let bytes = self.directory.required(name, self.directory.read_bytes(name)?)?;
        Ok(bytes.trim_ascii_end().to_owned())
    }

    #[cold]
    fn malformed(&self, name: &str, text: &[u8]) -> BoxedError {
        let subject = displayed(&self.device.directory().join(name).display());
        BoxedError::from(Error::Malformed { subject, found: readable(text, LONGEST) })
    }
}
