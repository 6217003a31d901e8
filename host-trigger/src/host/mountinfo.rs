//! Mount tables of processes
//! ([`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html)). A
//! line that cannot be read is an error: it may be the mount that a caller looks for.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::major;

use super::{holders::FileId, kernel_text};

/// File systems without a device that unprivileged users can mount in a user namespace of their
/// own, with any text as their source.
const USERS: [&[u8]; 10] = [
    b"tmpfs", b"ramfs", b"overlay", b"proc", b"sysfs", b"devpts", b"mqueue", b"cgroup", b"cgroup2",
    b"bpf",
];

/// A line of a mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Identifies the mount in all mount namespaces.
    pub(crate) id: u64,
    /// The device number of the file system. One that spans several devices has a number of its
    /// own, and `source` names one of them.
    pub(crate) device: u64,
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// The type of the file system.
    pub(crate) kind: OsString,
    pub(crate) source: OsString,
    /// The options of the file system, separated by commas, with the kernel's octal escapes.
    pub(crate) options: Vec<u8>,
}

impl Mount {
    /// Whether the file system is on the block device `number`.
    pub(crate) fn is_on(&self, number: u64) -> bool {
        self.device == number || self.source_numbers().contains(&number)
    }

    /// The paths of the block devices that the mount source names, for a file system without a
    /// device number of its own: Btrfs names one of them, and bcachefs all of them, with colons
    /// between them. A user's text is not followed: it may lead to a server that does not reply.
    pub(crate) fn source_paths(&self) -> impl Iterator<Item = &Path> {
        let kind = self.kind.as_bytes();
        let is_users = USERS.contains(&kind) || kind.starts_with(b"fuse");
        let is_named = major(self.device) == 0 && !is_users;
        let parts = self.source.as_bytes().split(|&byte| byte == b':').filter(move |_| is_named);
        parts
            .filter(|part| part.starts_with(b"/dev/"))
            .map(|part| Path::new(OsStr::from_bytes(part)))
    }

    /// The numbers of the block devices that the mount source names and that have a device node
    /// there.
    pub(crate) fn source_numbers(&self) -> Vec<u64> {
        let ids = self.source_paths().filter_map(FileId::at);
        ids.filter_map(FileId::block).collect()
    }
}

/// Returns the mounts of the process `pid` (a number, or `self`), the topmost last.
pub(crate) fn of(pid: &str) -> io::Result<Vec<Mount>> {
    let path = format!("/proc/{pid}/mountinfo");
    parse(&kernel_text::read(&path)?).map_err(kernel_text::of(path))
}

/// Parses a mount table.
pub(crate) fn parse(table: &[u8]) -> io::Result<Vec<Mount>> {
    let lines = table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                let what = format!("this line cannot be read: {}", String::from_utf8_lossy(line));
                io::Error::new(io::ErrorKind::InvalidData, what)
            })
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = kernel_text::number(fields.next()?)?;
    let device = kernel_text::device_number(fields.nth(1)?)?;
    let point = kernel_text::unescape(fields.nth(1)?).into();
    // Any number of optional fields follows the mount's own options.
    let mut fields = fields.skip(1).skip_while(|field| *field != b"-");
    let kind = kernel_text::unescape(fields.nth(1)?);
    let source = kernel_text::unescape(fields.next()?);
    let options = fields.next()?.to_vec();
    Some(Mount { id, device, point, kind, source, options })
}

/// Returns the ID of the mount that `file` was opened through
/// ([`fdinfo`](https://man7.org/linux/man-pages/man5/proc_pid_fdinfo.5.html)).
pub(crate) fn id_of(file: impl AsFd) -> io::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    let text = kernel_text::read(&path)?;
    let mut lines = text.split(|&byte| byte == b'\n');
    let id = lines.find_map(|line| line.strip_prefix(b"mnt_id:")).and_then(kernel_text::number);
    id.ok_or_else(|| kernel_text::malformed(path, "it has no mnt_id"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::stat::makedev;

    use super::*;

    #[test]
    fn a_line_has_a_device_a_mount_point_and_a_source() {
        let mounts = parse(
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
              37 35 98:17 / /mnt\\0403\xff rw - xfs /dev/nu\\040ll rw,a=\\054b\n\
              38 35 0:7 / /- rw shared:1 - tmpfs  rw\n",
        )
        .unwrap();
        let found: Vec<_> = mounts.iter().map(|mount| (&*mount.point, &*mount.source)).collect();
        let bytes = |bytes| OsStr::from_bytes(bytes);
        assert_eq!(
            found,
            [
                (Path::new("/mnt2"), bytes(b"/dev/root")),
                (Path::new(bytes(b"/mnt 3\xff")), bytes(b"/dev/nu ll")),
                (Path::new("/-"), bytes(b""))
            ]
        );
        assert_eq!(mounts[1].options, b"rw,a=\\054b");
        let on = |number| mounts.iter().position(|mount| mount.is_on(number));
        assert_eq!([on(makedev(98, 0)), on(makedev(98, 17))], [Some(0), Some(1)]);
        assert_eq!(on(makedev(98, 1)), None);
    }

    #[test]
    fn no_byte_in_a_mount_point_hides_another_mount() {
        for byte in 1..=u8::MAX {
            let point = match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                _ => vec![byte],
            };
            let line = |point: &[u8]| [b"1 0 8:1 / ", point, b" rw - ext4 x rw\n"].concat();
            let table = [line(b"/a"), line(&point), line(b"/b")].concat();
            let points: Vec<_> = parse(&table).unwrap().into_iter().map(|m| m.point).collect();
            let this = Path::new(OsStr::from_bytes(std::slice::from_ref(&byte)));
            assert_eq!(points, [Path::new("/a"), this, Path::new("/b")]);
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_an_error() {
        for line in
            [&b"cut off"[..], b"36 35 98:0 / / rw", b"x 35 98:0 / / rw - ext3 a rw", b"\xff"]
        {
            let table = [b"36 35 98:0 / / rw - ext3 /dev/root rw\n", line].concat();
            assert_eq!(parse(&table).unwrap_err().kind(), io::ErrorKind::InvalidData, "{line:?}");
        }
    }

    #[test]
    fn only_a_block_device_below_dev_has_a_number() {
        let numbers = |line: &[u8]| parse_line(line).unwrap().source_numbers();
        assert_eq!(numbers(b"1 0 0:2 / / rw - rootfs rootfs rw"), [0; 0]);
        assert_eq!(numbers(b"2 1 0:3 / /dev rw - btrfs /dev/null rw"), [0; 0]);
        let paths = |kind| {
            let line = format!("2 1 0:3 / / rw - {kind} /dev/x rw");
            parse_line(line.as_bytes()).unwrap().source_paths().count()
        };
        assert_eq!(["btrfs", "tmpfs", "fuse.sshfs"].map(paths), [1, 0, 0]);
        let mount = parse_line(b"2 1 0:3 / / rw - bcachefs /dev/sda:/dev/sdb rw").unwrap();
        assert_eq!(
            mount.source_paths().collect::<Vec<_>>(),
            ["/dev/sda", "/dev/sdb"].map(Path::new)
        );
    }

    #[test]
    fn the_mount_of_the_root_is_found_by_its_id() {
        let id = id_of(File::open("/").unwrap()).unwrap();
        let mounts = of("self").unwrap();
        let root = mounts.iter().find(|mount| mount.id == id).unwrap();
        assert_eq!(root.point, Path::new("/"));
    }
}
