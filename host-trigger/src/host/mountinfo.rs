//! Mount tables of processes
//! ([`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)).

use std::{fs, io};

use super::{block_device::parse_number, holders::FileId};

/// A line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The device number of the file system. One that spans several devices has a number of its
    /// own, and `source` names one of them.
    device: u64,
    /// Where it is mounted, with the kernel's octal escapes.
    pub(crate) point: String,
    source: String,
}

impl Mount {
    /// Whether the file system is on the block device `number`.
    pub(crate) fn is_on(&self, number: u64) -> bool {
        self.device == number || self.source_number() == Some(number)
    }

    /// The number of the block device that the mount source names.
    pub(crate) fn source_number(&self) -> Option<u64> {
        if !self.source.starts_with("/dev/") {
            return None;
        }
        match FileId::at(&self.source)? {
            FileId::Block(number) => Some(number),
            FileId::File(..) => None,
        }
    }
}

/// Returns the mounts of the process `pid` (a number, or `self`), the topmost last.
pub(crate) fn of(pid: &str) -> io::Result<Vec<Mount>> {
    // A path may have bytes that are not UTF-8; that must not hide the other mounts.
    let table = fs::read(format!("/proc/{pid}/mountinfo"))?;
    Ok(parse(&String::from_utf8_lossy(&table)))
}

pub(crate) fn parse(table: &str) -> Vec<Mount> {
    table.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let device = parse_number(fields.nth(2)?.as_bytes())?;
    let point = fields.nth(1)?.to_owned();
    let source = line.split_once(" - ")?.1.split(' ').nth(1)?.to_owned();
    Some(Mount { device, point, source })
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn a_line_has_a_device_a_mount_point_and_a_source() {
        let mounts = parse(
            "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
             37 35 98:17 / /mnt\\0403 rw - xfs /dev/null rw\n\
             cut off\n",
        );
        let found: Vec<_> = mounts.iter().map(|mount| (&*mount.point, &*mount.source)).collect();
        assert_eq!(found, [("/mnt2", "/dev/root"), ("/mnt\\0403", "/dev/null")]);
        let on = |number| mounts.iter().position(|mount| mount.is_on(number));
        assert_eq!([on(makedev(98, 0)), on(makedev(98, 17))], [Some(0), Some(1)]);
        assert_eq!(on(makedev(98, 1)), None);
    }

    #[test]
    fn only_a_block_device_below_dev_has_a_number() {
        let number = |line: &str| parse_line(line).unwrap().source_number();
        assert_eq!(number("1 0 0:2 / / rw - rootfs rootfs rw"), None);
        assert_eq!(number("2 1 0:3 / /dev rw - tmpfs /dev/null rw"), None);
    }

    #[test]
    fn own_mounts_include_the_root() {
        assert!(of("self").unwrap().iter().any(|mount| mount.point == "/"));
    }
}
