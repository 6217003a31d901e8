//! The backing files of loop devices. The kernel reports them as device and inode
//! ([`LOOP_GET_STATUS64`](https://man7.org/linux/man-pages/man4/loop.4.html)). An exclusive open
//! does not detect a loop device, and the path in sysfs may lead elsewhere: the file was renamed or
//! removed, or the path belongs to another mount namespace.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io,
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{MetadataExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};

use super::FileId;
use crate::host::{
    block_device::{BlockDevice, SYSFS},
    kernel_text,
};

/// The major number of loop devices.
pub(crate) const MAJOR: u64 = 7;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    numbers: [u32; 4],
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    key: [u8; 32],
    init: [u64; 2],
}

nix::ioctl_read_bad!(loop_get_status64, 0x4c05, LoopInfo);

/// A loop device that has a backing file or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoopDevice {
    pub(crate) name: String,
    pub(crate) number: u64,
    /// The path of its backing file as the kernel reports it, which may lead elsewhere.
    pub(crate) path: PathBuf,
    /// `None` if it is unknown: it has no device node, and its path leads nowhere.
    pub(crate) backing: Option<Backing>,
}

/// What a loop device is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) file_id: FileId,
    /// The bytes of the file that the device has.
    pub(crate) range: Range<u64>,
    /// The kernel reported the file itself, and not only its path.
    pub(crate) is_certain: bool,
}

impl Backing {
    fn new(file_id: FileId, offset: u64, size_limit: u64, is_certain: bool) -> Self {
        let end = if size_limit == 0 { u64::MAX } else { offset.saturating_add(size_limit) };
        Self { file_id, range: offset..end, is_certain }
    }

    /// Returns what backs the loop device that is open as `device`; `None` if nothing does.
    pub(crate) fn of(device: impl AsFd) -> io::Result<Option<Self>> {
        match status(device) {
            Ok(LoopInfo { device, inode, rdevice, offset, size_limit, .. }) => {
                let file_id = match rdevice {
                    0 => FileId::File(device, inode),
                    _ => FileId::Block(rdevice),
                };
                Ok(Some(Self::new(file_id, offset, size_limit, true)))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Asks the device node of the loop device `number`.
    fn of_node(name: &str, number: u64) -> io::Result<Option<Self>> {
        let node = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(format!("/dev/{name}"))?;
        if node.metadata()?.rdev() != number {
            return Err(io::ErrorKind::NotFound.into());
        }
        Self::of(node)
    }
}

/// Returns all loop devices that are in use.
///
/// # Errors
/// They cannot be listed.
pub(crate) fn all() -> io::Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    for disk in BlockDevice::disks(Path::new(SYSFS))? {
        if disk.name().as_bytes().starts_with(b"loop") {
            found.extend(find(&disk)?);
        }
    }
    Ok(found)
}

/// Returns the loop device `device` if it is in use. Without a device node to query, the path in
/// sysfs is used.
pub(crate) fn find(device: &BlockDevice) -> io::Result<Option<LoopDevice>> {
    let directory = device.directory();
    let attributes = directory.join("loop");
    if !attributes.try_exists().map_err(kernel_text::of(&attributes))? {
        return Ok(None);
    }
    let (name, number) = (device.name().to_string_lossy().into_owned(), device.number);
    let path = backing_path(directory);
    let by_path = || {
        let bytes = |part| kernel_text::number(&kernel_text::read(attributes.join(part)).ok()?);
        let [offset, limit] = ["offset", "sizelimit"].map(bytes);
        Some(Backing::new(FileId::at(&path)?, offset.unwrap_or(0), limit.unwrap_or(0), false))
    };
    let backing = match Backing::of_node(&name, number) {
        // It has been detached in the meantime.
        Ok(None) => return Ok(None),
        Ok(backing) => backing,
        Err(_) => by_path(),
    };
    Ok(Some(LoopDevice { name, number, path, backing }))
}

/// Returns the loop device `number`, given its own descriptor. It needs no device node.
pub(crate) fn of(number: u64, file: impl AsFd) -> io::Result<Option<LoopDevice>> {
    let device = BlockDevice::find(Path::new(SYSFS), number)?;
    let name = device.name().to_string_lossy().into_owned();
    let path = backing_path(device.directory());
    let backing = Backing::of(file)?;
    Ok(backing.map(|backing| LoopDevice { name, number, path, backing: Some(backing) }))
}

/// Returns the path of the backing file; an empty one if the kernel has none, or one that is longer
/// than a page.
fn backing_path(directory: &Path) -> PathBuf {
    let mut path = kernel_text::read(directory.join("loop/backing_file")).unwrap_or_default();
    path.pop_if(|last| *last == b'\n');
    OsString::from_vec(path).into()
}

#[expect(unsafe_code, reason = "nix has no safe wrapper for this request")]
fn status(device: impl AsFd) -> io::Result<LoopInfo> {
    let mut info = LoopInfo {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        numbers: [0; 4],
        file_name: [0; 64],
        crypt_name: [0; 64],
        key: [0; 32],
        init: [0; 2],
    };
    // SAFETY: the request writes one `struct loop_info64` to the address, which is valid for the
    // call.
    unsafe { loop_get_status64(device.as_fd().as_raw_fd(), &mut info) }?;
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_kernels_size() {
        assert_eq!(size_of::<LoopInfo>(), 232);
    }

    #[test]
    fn no_loop_device_is_backed_by_a_file_that_does_not_exist() {
        let absent = |known: &Backing| known.file_id == FileId::File(0, 0);
        assert!(!all().unwrap().iter().any(|known| known.backing.as_ref().is_some_and(absent)));
    }

    #[test]
    fn without_a_limit_a_loop_device_has_its_file_to_the_end() {
        let range = |offset, limit| Backing::new(FileId::Block(0), offset, limit, true).range;
        assert_eq!((range(512, 0), range(512, 1024)), (512..u64::MAX, 512..1536));
    }
}
