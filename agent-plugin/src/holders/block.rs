//! Devices that are made of a disk: [`holders`] in sysfs (device mapper, md), and loop devices over
//! it ([loop(4)](https://man7.org/linux/man-pages/man4/loop.4.html)), which do not claim it and are
//! not listed there.
//!
//! [`holders`]: https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-block

use std::{os::fd::AsRawFd as _, path::Path};

use nix::fcntl::OFlag;

use super::{
    disk::{Disk, directory},
    found::{Found, LONGEST_NAME, Trace},
    scan::Budget,
};
use crate::{
    block::DeviceNumber, error::Result, holder::HolderKind, kernel_file, node::open_block_device,
    sysfs, text::readable,
};

/// The devices on top of `disks` that have claimed them.
pub(super) fn above(disks: &[Disk]) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for disk in disks {
        for (name, _) in &disk.devices {
            for holder in sysfs::names(&directory(name).join("holders"))? {
                let (kind, detail) = describe(&holder);
                found.push(Found::new(disk, kind, detail, Trace::Uevent));
            }
        }
    }
    Ok(found)
}

/// Its kind, and its name with that of a mapping.
fn describe(name: &str) -> (HolderKind, String) {
    let directory = directory(name);
    if directory.join("dm").exists() {
        // The name is for people. A mapping that is being removed has none any more (EINVAL).
        let mapped = kernel_file::read(directory.join("dm/name")).unwrap_or_default();
        let mapped = readable(mapped.trim_ascii_end(), LONGEST_NAME);
        let detail = if mapped.is_empty() { name.to_owned() } else { format!("{name} ({mapped})") };
        return (HolderKind::Dm, detail);
    }
    let kind = if directory.join("md").exists() { HolderKind::Md } else { HolderKind::Device };
    (kind, name.to_owned())
}

/// The loop devices over `disks`.
pub(super) fn loops(disks: &[Disk], budget: &mut Budget) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for name in
        sysfs::names(Path::new("/sys/block"))?.into_iter().filter(|name| name.starts_with("loop"))
    {
        if !budget.is_left() {
            break;
        }
        // One without a backing file is not in use.
        if !directory(&name).join("loop/backing_file").exists() {
            continue;
        }
        let Some(backing) = backing(&name) else { continue };
        let is_of = |disk: &&Disk| match backing {
            Backing::Device(number) => disk.has(number),
            Backing::FileOn(number) => disk.has_files_of(number),
        };
        for disk in disks.iter().filter(is_of) {
            found.push(Found::new(disk, HolderKind::Loop, name.clone(), Trace::Uevent));
        }
    }
    Ok(found)
}

/// `struct loop_info64`, as far as it is used.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    backing_device: u64,
    rest: [u64; 26],
}

// The kernel writes this number of bytes.
const _: () = assert!(size_of::<LoopInfo>() == 232);

/// What is below a loop device. (The name in sysfs is a path in an unknown namespace.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backing {
    Device(DeviceNumber),
    /// A file with this `st_dev`.
    FileOn(DeviceNumber),
}

/// `None` for a loop device that is being removed.
#[expect(unsafe_code, reason = "LOOP_GET_STATUS64 has no safe wrapper in libc or nix")]
fn backing(name: &str) -> Option<Backing> {
    const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;
    let number = sysfs::read(&directory(name).join("dev")).ok()??;
    let node = open_block_device(name, number, OFlag::O_RDONLY).ok()?;
    let mut info = LoopInfo { device: 0, inode: 0, backing_device: 0, rest: [0; 26] };
    // SAFETY: the kernel writes one `loop_info64`, whose size `LoopInfo` has, to `info`, which
    // outlives the call.
    let result = unsafe { libc::ioctl(node.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) };
    (result == 0).then(|| match info.backing_device {
        0 => Backing::FileOn(DeviceNumber::from_raw(info.device)),
        number => Backing::Device(DeviceNumber::from_raw(number)),
    })
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
