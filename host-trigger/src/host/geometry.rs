//! Reads the geometry of a block device: by the block layer's
//! [`ioctl(2)`](https://man7.org/linux/man-pages/man2/ioctl.2.html) requests, and from
//! [`queue/`](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block) in sysfs what has
//! none. A source that the guest could not have as it is, is refused before anything changes.

use std::{fs, io, os::fd::BorrowedFd, path::Path};

use nix::sys::stat::{major, minor};

use super::fd;
use crate::{Error, disk_geometry::DiskGeometry};

/// The logical block sizes that Linux takes from a SCSI disk (`sd_read_capacity`). QEMU passes on
/// up to 2 MiB, of which the guest then makes a disk of size 0.
const BLOCK_SIZES: [u32; 4] = [512, 1024, 2048, 4096];

/// Reads the geometry of the block device `number`, which is open as `device`.
pub(super) fn read(device: BorrowedFd<'_>, number: u64) -> io::Result<DiskGeometry> {
    let logical = fd::logical_block_size(device)?;
    Ok(DiskGeometry {
        logical_block_size: u32::try_from(logical).map_err(io::Error::other)?,
        physical_block_size: fd::physical_block_size(device)?,
        minimum_io_size: fd::minimum_io_size(device)?,
        optimal_io_size: fd::optimal_io_size(device)?,
        discard_granularity: queue(number, "discard_granularity").unwrap_or(0),
        rotational: fd::rotational(device)? != 0,
    })
}

/// Whether the disk of a file system on the device `number` rotates; `None` if that is not known,
/// as of a file system that is on several devices or on none.
pub(super) fn is_rotational(number: u64) -> Option<bool> {
    queue(number, "rotational").map(|value| value != 0)
}

/// Checks that a disk of this geometry and size can be the guest's.
///
/// # Errors
/// It cannot.
pub(super) fn check(geometry: &DiskGeometry, path: &Path, size: u64) -> Result<(), Error> {
    let unit = geometry.logical_block_size;
    let path = path.to_owned();
    match () {
        () if !BLOCK_SIZES.contains(&unit) => Err(Error::SourceBlockSize { path, size: unit }),
        // The guest would have whole blocks only, and never the size that QEMU has.
        () if !size.is_multiple_of(unit.into()) => Err(Error::SourceUnaligned { path, size, unit }),
        () => Ok(()),
    }
}

/// Reads a number of the request queue of a device, or of the disk that it is a partition of.
fn queue(number: u64, name: &str) -> Option<u32> {
    let device = format!("/sys/dev/block/{}:{}", major(number), minor(number));
    let read = |queue: &str| fs::read(Path::new(&device).join(queue).join(name));
    let text = read("queue").or_else(|_| read("../queue")).ok()?;
    str::from_utf8(&text).ok()?.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const PLAIN: DiskGeometry = DiskGeometry {
        logical_block_size: 512,
        physical_block_size: 512,
        minimum_io_size: 512,
        optimal_io_size: 0,
        discard_granularity: 0,
        rotational: true,
    };

    #[rstest]
    #[case(512, 512, None)]
    #[case(512, 513, Some("is not a multiple of 512"))]
    #[case(4096, 8192, None)]
    #[case(4096, 8192 + 512, Some("is not a multiple of 4096"))]
    #[case(8192, 16384, Some("blocks of 8192 bytes"))]
    #[case(0, 512, Some("blocks of 0 bytes"))]
    fn block_sizes_and_sizes_are_checked(
        #[case] logical_block_size: u32,
        #[case] size: u64,
        #[case] refused: Option<&str>,
    ) {
        let geometry = DiskGeometry { logical_block_size, ..PLAIN };
        let checked = check(&geometry, Path::new("/dev/x"), size).map_err(|e| e.message());
        match (checked, refused) {
            (Ok(()), None) => {}
            (Err(message), Some(why)) => assert!(message.contains(why), "{message}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_system_without_a_device_has_no_rotation() {
        assert_eq!(is_rotational(nix::sys::stat::makedev(0, 4095)), None);
    }
}
