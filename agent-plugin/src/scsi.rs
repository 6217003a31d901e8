//! SCSI hosts and devices of the guest's kernel: address, virtio-scsi host, scan, rescan, cache,
//! delete.
//!
//! Wraps `/sys/class/scsi_host/hostN/scan`, `/sys/bus/scsi/devices/H:C:T:L/{rescan,delete}` and
//! `/sys/class/scsi_disk/H:C:T:L/cache_type`
//! ([SCSI mid-layer](https://docs.kernel.org/scsi/scsi_mid_low_api.html),
//! [sysfs-bus-scsi](https://docs.kernel.org/admin-guide/abi-testing.html)).

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::OFlag};

use crate::{
    block,
    error::{Error, Result},
    fault, named, sysfs,
    text::decimal,
};

const HOSTS: &str = "/sys/class/scsi_host";
const DEVICES: &str = "/sys/bus/scsi/devices";

/// A logical unit on a virtio-scsi host; the channel is always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScsiAddress {
    /// 0 to 255.
    pub target: u8,
    /// 1 to 255: from 256 on, the kernel's event and a manual scan show the same disk twice.
    pub lun: u8,
}

impl fmt::Display for ScsiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.target, self.lun)
    }
}

/// A logical unit on one host, in the kernel's notation: `H:0:T:L`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ScsiDevice {
    /// Number of the host.
    pub host: u32,
    /// Address on that host.
    pub address: ScsiAddress,
}

impl fmt::Display for ScsiDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:0:{}:{}", self.host, self.address.target, self.address.lun)
    }
}

impl ScsiDevice {
    /// The device in a disk's path in sysfs (`…/0:0:255:3/block/sda`), with the disk's name.
    ///
    /// `None` for every other path: a partition has one more component, a disk of another driver
    /// has no such address.
    pub fn from_devpath(devpath: &str) -> Option<(ScsiDevice, &str)> {
        let (device, name) = devpath.rsplit_once("/block/")?;
        if name.is_empty() || name.contains('/') {
            return None;
        }
        let mut numbers = device.rsplit('/').next()?.split(':');
        let host = decimal(numbers.next()?)?;
        let (channel, target, lun) = (numbers.next()?, numbers.next()?, numbers.next()?);
        if numbers.next().is_some() || channel != "0" {
            return None;
        }
        let address = ScsiAddress { target: decimal(target)?, lun: decimal(lun)? };
        Some((ScsiDevice { host, address }, name))
    }

    /// The path of its directory in sysfs.
    pub fn directory(&self) -> PathBuf {
        PathBuf::from(format!("{DEVICES}/{self}"))
    }

    /// Whether the kernel has it.
    pub fn exists(&self) -> bool {
        sysfs::exists(&format!("{DEVICES}/{self}"))
    }

    /// Makes the kernel read the capacity of the device again. Returns when that is done.
    ///
    /// # Errors
    /// The kernel refuses, or the device is gone.
    pub fn rescan(&self) -> Result<()> {
        let rescan = self.directory().join("rescan");
        sysfs::write(&rescan, "1").map_err(Error::system("write", &rescan.display()))
    }

    /// Sets what the kernel takes the disk's cache for ("write back", "write through"), and returns
    /// what it was taken for. The disk itself is not told: no command is sent.
    ///
    /// # Errors
    /// The kernel refuses, or has no disk there.
    pub fn replace_cache(&self, cache: &str) -> Result<String> {
        let path = PathBuf::from(format!("/sys/class/scsi_disk/{self}/cache_type"));
        let before = sysfs::required(&path, sysfs::read(&path)?)?;
        sysfs::write(&path, &format!("temporary {cache}"))
            .map_err(Error::system("write", &path.display()))?;
        Ok(before)
    }

    /// Removes the disk of this serial from the kernel, and returns when that is done. A disk that
    /// is gone is fine. A disk of another serial, which may have the address by now, is left alone.
    /// `false`: what is there shows no serial, and is left alone, too.
    ///
    /// # Errors
    /// The kernel refuses, or the disk still exists.
    pub fn delete(&self, serial: &str) -> Result<bool> {
        let path = self.directory();
        let failed = |error| Error::system("write", &path.join("delete").display())(error);
        // Once this directory is open, nothing in it can be that of another disk: when the disk is
        // removed, it becomes empty for good.
        let directory = match File::open(&path) {
            Ok(directory) => directory,
            Err(error) if sysfs::is_gone(&error) => return Ok(true),
            Err(error) => return Err(failed(error)),
        };
        let write = |file| {
            let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let file = named::openat(&directory, file, flags)?;
            File::from(file).write_all(b"1")
        };
        let found = || -> io::Result<Option<String>> {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let page = match named::openat(&directory, "vpd_pg80", flags) {
                Ok(file) => file,
                Err(Errno::ENOENT) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            let mut bytes = Vec::new();
            File::from(page).read_to_end(&mut bytes)?;
            Ok(block::serial_of_page_80(&bytes))
        };
        let result = match found() {
            Ok(None) => {
                // The kernel may have been interrupted when it read the serial.
                write("rescan").and_then(|()| found())
            }
            found => found,
        };
        let result = match result {
            Ok(Some(found)) if found == serial => write("delete"),
            Ok(Some(_)) => return Ok(true),
            Ok(None) => return Ok(false),
            Err(error) => Err(error),
        };
        let exists = || named::openat(&directory, "delete", OFlag::O_PATH).is_ok();
        match result {
            Ok(()) if exists() => Err(failed(io::Error::from_raw_os_error(libc::EBUSY))),
            Ok(()) => Ok(true),
            Err(error) if sysfs::is_gone(&error) => Ok(true),
            Err(error) => Err(failed(error)),
        }
    }
}

/// A virtio-scsi host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScsiHost {
    /// N in `hostN`.
    pub number: u32,
    /// The parent of the virtio device: a PCI address (`0000:00:01.0`), or the notation of another
    /// bus.
    pub controller: String,
}

impl ScsiHost {
    /// The guest's virtio-scsi hosts; other SCSI hosts (AHCI, USB) are left out.
    ///
    /// # Errors
    /// sysfs cannot be read.
    pub fn all() -> Result<Vec<ScsiHost>> {
        let mut hosts: Vec<ScsiHost> = Vec::new();
        for name in sysfs::names(Path::new(HOSTS))? {
            // The link has all of it, so that no attribute needs to be read:
            // "…/0000:00:01.0/virtio0/host0/scsi_host/host0".
            if let Ok(link) = fs::read_link(Path::new(HOSTS).join(&name))
                && let Some(host) = ScsiHost::from_link(&link.to_string_lossy())
            {
                // In order. For the few there are, a sort would be 10 kB of code.
                hosts.insert(hosts.partition_point(|other| other.number < host.number), host);
            }
        }
        Ok(hosts)
    }

    /// The hosts that may have a volume: that of the named controller, or all.
    ///
    /// # Errors
    /// There is none.
    pub fn candidates(hosts: &[ScsiHost], controller: Option<&str>) -> Result<Vec<ScsiHost>> {
        let mut candidates = hosts.to_vec();
        candidates.retain(|host| controller.is_none_or(|named| host.controller == named));
        if candidates.is_empty() {
            return Err(Error::NoController { named: controller.map(str::to_owned) }.into());
        }
        Ok(candidates)
    }

    /// Parses a link of `/sys/class/scsi_host`. virtio_scsi is the only driver with a SCSI host
    /// directly below a virtio device.
    pub fn from_link(link: &str) -> Option<ScsiHost> {
        let mut parts = link.rsplit('/').skip(2);
        let number = decimal(parts.next()?.strip_prefix("host")?)?;
        let _: u32 = decimal(parts.next()?.strip_prefix("virtio")?)?;
        Some(ScsiHost { number, controller: parts.next()?.to_owned() })
    }

    /// Scans one logical unit. Returns when the kernel has probed the device, before the disk has a
    /// name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn scan(&self, address: ScsiAddress) -> Result<()> {
        let scan = format!("{HOSTS}/host{}/scan", self.number);
        let one = format!("0 {} {}", address.target, address.lun);
        let command = if fault::skips("scan-one") { "- - -".to_owned() } else { one };
        sysfs::write(Path::new(&scan), &command).map_err(Error::system("write", &scan))
    }

    /// The device at `address` of this host.
    pub fn device(&self, address: ScsiAddress) -> ScsiDevice {
        ScsiDevice { host: self.number, address }
    }
}

/// How the kernel scans by itself: "none", "sync", "async" or "manual"; empty where scsi_mod does
/// not show it.
pub fn scan_mode() -> Result<String> {
    Ok(sysfs::read(Path::new("/sys/module/scsi_mod/parameters/scan"))?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const BUS: &str = "/devices/pci0000:00/0000:00:01.0/virtio0/host0/target0:0:255";

    #[test]
    fn a_disk_is_found_in_its_path() {
        let path = format!("{BUS}/0:0:255:3/block/sda");
        let (device, name) = ScsiDevice::from_devpath(&path).unwrap();
        assert_eq!(device, ScsiDevice { host: 0, address: ScsiAddress { target: 255, lun: 3 } });
        assert_eq!((device.to_string().as_str(), name), ("0:0:255:3", "sda"));
        assert_eq!(device.directory(), Path::new("/sys/bus/scsi/devices/0:0:255:3"));
    }

    #[rstest]
    #[case::partition("0:0:255:3/block/sda/sda1")]
    #[case::no_block("0:0:255:3/bsg/0:0:255:3")]
    #[case::lun_300_seen_twice("0:0:0:16684/block/sdb")]
    #[case::other_channel("0:1:255:3/block/sda")]
    #[case::signs("0:0:+255:3/block/sda")]
    #[case::five_numbers("0:0:0:255:3/block/sda")]
    #[case::virtio_blk("virtio1/block/vda")]
    #[case::no_name("0:0:255:3/block/")]
    fn other_paths_are_left_out(#[case] tail: &str) {
        assert_eq!(ScsiDevice::from_devpath(&format!("{BUS}/{tail}")), None);
    }

    #[rstest]
    #[case("../../devices/pci0000:00/0000:00:01.0/virtio0/host2/scsi_host/host2", Some((2, "0000:00:01.0")))]
    #[case("../../devices/css0/0.0.0001/0.0.0001/virtio3/host0/scsi_host/host0", Some((0, "0.0.0001")))]
    #[case("../../devices/pci0000:00/0000:00:1f.2/ata1/host0/scsi_host/host0", None)]
    #[case("../../devices/pci0000:00/0000:00:03.0/usb1/1-1/1-1:1.0/host3/scsi_host/host3", None)]
    #[case("host0", None)]
    fn only_virtio_scsi_hosts_are_found(#[case] link: &str, #[case] expected: Option<(u32, &str)>) {
        let found = ScsiHost::from_link(link);
        assert_eq!(found.as_ref().map(|host| (host.number, host.controller.as_str())), expected);
    }
}
