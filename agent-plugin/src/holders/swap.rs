//! Swap: [`/proc/swaps`](https://man7.org/linux/man-pages/man5/proc_swaps.5.html).
//!
//! The kernel shows only the path that was passed to swapon: one in the guest's own `/dev`, or one
//! of a container.

use std::{fs::File, io::Read as _, path::Path, rc::Rc};

use super::{
    disk::Disk,
    found::{Found, Trace},
    process,
};
use crate::{
    error::{Error, Result},
    holder::HolderKind,
};

const SWAPS: &str = "/proc/swaps";

/// Finds swap on `disks`.
pub(super) fn swaps(disks: &[Disk]) -> Result<Vec<Found>> {
    let mut text = String::new();
    let mut file = match File::open(SWAPS) {
        // A kernel without swap.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.map_err(Error::system("open", SWAPS))?,
    };
    file.read_to_string(&mut text).map_err(Error::system("read", SWAPS))?;
    let trace = Trace::Changes(Rc::new(file), None);
    let on = |disk: &Disk, path: &str| {
        path == disk.path
            || process::block_device(Path::new(path)).is_some_and(|number| disk.has(number))
    };
    let found = |disk: &Disk, path: &str| {
        Found::new(disk, HolderKind::Swap, path.to_owned(), trace.clone())
    };
    let all = devices(&text).flat_map(|path| {
        disks.iter().filter(move |disk| on(disk, path)).map(move |disk| (disk, path))
    });
    Ok(all.map(|(disk, path)| found(disk, path)).collect())
}

/// The paths of swap devices. Swap files are on a file system, whose mount is found.
fn devices(text: &str) -> impl Iterator<Item = &str> {
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "partition").then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_are_listed() {
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/xvda                               partition\t8188\t\t0\t\t-2\n\
                    /swap\\040file                           file\t\t8188\t\t0\t\t-3\n";
        assert_eq!(devices(text).collect::<Vec<_>>(), ["/dev/xvda"]);
        assert_eq!(devices("").count(), 0);
    }
}
