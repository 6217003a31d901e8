//! Swap: [`/proc/swaps`](https://man7.org/linux/man-pages/man5/proc_swaps.5.html).
//!
//! The kernel shows only the path that was passed to swapon: one in the guest's own `/dev`, or one
//! of a container.

use std::{ffi::OsStr, fs::File, io::Read as _, os::unix::ffi::OsStrExt as _, path::Path, rc::Rc};

use super::{
    disk::Disk,
    found::{Found, LONGEST_NAME, Trace},
    process,
};
use crate::{
    error::{Error, Result},
    holder::HolderKind,
    text::{lines, readable, unescaped, words},
};

const SWAPS: &str = "/proc/swaps";

/// Finds swap on `disks`.
pub(super) fn swaps(disks: &[Disk]) -> Result<Vec<Found>> {
    let mut text = Vec::new();
    let mut file = match File::open(SWAPS) {
        // A kernel without swap.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(Error::system("open", &SWAPS))?,
    };
    file.read_to_end(&mut text).map_err(Error::system("read", &SWAPS))?;
    let trace = Trace::Changes(Rc::new(file), None);
    let mut found = Vec::new();
    for path in files(&text) {
        let is_on = |disk: &&Disk| {
            let below = path.strip_prefix(disk.path.as_bytes());
            disk.mounted.is_some() && below.is_some_and(|rest| rest.starts_with(b"/"))
        };
        for disk in disks.iter().filter(is_on) {
            let detail = readable(&path, LONGEST_NAME);
            found.push(Found::new(disk, HolderKind::Swap, detail, trace.clone()));
        }
    }
    for path in devices(&text) {
        let number = process::block_device(Path::new(OsStr::from_bytes(&path)));
        let is_on = |disk: &&Disk| {
            path == disk.path.as_bytes() || number.is_some_and(|number| disk.has(number))
        };
        for disk in disks.iter().filter(is_on) {
            let detail = readable(&path, LONGEST_NAME);
            found.push(Found::new(disk, HolderKind::Swap, detail, trace.clone()));
        }
    }
    Ok(found)
}

/// The paths of swap devices. Swap files are on a file system, whose mount is found.
pub(crate) fn devices(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    paths(text, b"partition")
}

/// The paths of swap files, as those saw them who made the kernel use them.
fn files(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    paths(text, b"file")
}

fn paths(text: &[u8], wanted: &'static [u8]) -> impl Iterator<Item = Vec<u8>> {
    lines(text).skip(1).filter_map(move |line| {
        let mut fields = words(line);
        let (path, kind) = (fields.next()?, fields.next()?);
        // A node that was removed since.
        let path = path.strip_suffix(br"\040(deleted)").unwrap_or(path);
        (kind == wanted && !path.is_empty()).then(|| unescaped(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_are_listed() {
        let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/xvda                               partition\t8188\t\t0\t\t-2\n\
                    /a\\040\xff\r\\040(deleted) partition\t8188\t\t0\t\t-2\n\
                    /swap\\040file                           file\t\t8188\t\t0\t\t-3\n";
        assert_eq!(devices(text).collect::<Vec<_>>(), [&b"/dev/xvda"[..], b"/a \xff\r"]);
        assert_eq!(devices(b"").count(), 0);
        assert_eq!(files(text).collect::<Vec<_>>(), [b"/swap file"]);
    }
}
