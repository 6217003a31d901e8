//! The backing files of loop devices. The kernel reports them as device and inode
//! ([`LOOP_GET_STATUS64`](https://man7.org/linux/man-pages/man4/loop.4.html)). An exclusive open
//! does not detect a loop device, and the path in sysfs may lead elsewhere: the file was renamed or
//! removed, or the path belongs to another mount namespace.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use super::FileId;
use crate::host::sysfs::names;

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

/// Returns the loop devices whose backing file or device is one of `wanted`.
pub(crate) fn backed_by(wanted: &[FileId]) -> Vec<(String, FileId)> {
    let loops = names(Path::new("/sys/block")).filter(|name| name.starts_with("loop"));
    let with_backing = loops.filter_map(|name| {
        let recorded = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
        // Without a device node to query, the path in sysfs is used.
        let backing = backing(&name).unwrap_or_else(|_| FileId::at(recorded.trim_end()));
        Some((name, backing?))
    });
    with_backing.filter(|(_, backing)| wanted.contains(backing)).collect()
}

/// Returns what backs the loop device `name`; `None` if it has been detached in the meantime.
fn backing(name: &str) -> io::Result<Option<FileId>> {
    let node = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/dev/{name}"))?;
    let number = fs::read_to_string(format!("/sys/block/{name}/dev"))?;
    let rdev = node.metadata()?.rdev();
    if number.trim_end()
        != format!("{}:{}", nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev))
    {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(match status(node) {
        Ok(LoopInfo { rdevice: 0, device, inode, .. }) => Some(FileId::File(device, inode)),
        Ok(LoopInfo { rdevice, .. }) => Some(FileId::Block(rdevice)),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => None,
        Err(e) => return Err(e),
    })
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
        assert_eq!(backed_by(&[FileId::File(0, 0)]), []);
    }
}
