//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html): one
//! mount per line.
//!
//! ```text
//! 36 35 98:0 /root /point rw,noatime shared:5 master:1 - ext3 /dev/source rw,errors=continue
//! ```
//!
//! A name is bytes, whatever the container chose. The kernel writes a byte that would break the
//! line as a backslash and three octal digits: blank, tab, newline and backslash in every field,
//! and `#` in the source, too.

use crate::{
    block::DeviceNumber,
    text::{Lines, decimal, lines, parsed, split_once, unescaped},
};

/// A line of mountinfo, borrowed from its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountLine<'a> {
    /// The mount's id.
    pub id: u32,
    /// The id of the mount that it is mounted on.
    pub parent: u32,
    /// `st_dev` of files on the mount.
    pub number: DeviceNumber,
    /// The part of the file system that is mounted, escaped.
    pub root: &'a [u8],
    point: &'a [u8],
    /// Whether the mount is in a peer group, so that a mount below it propagates.
    pub is_shared: bool,
    /// Type of the file system.
    pub file_system: &'a [u8],
    source: &'a [u8],
    /// Options of the file system, separated by commas.
    pub options: &'a [u8],
}

impl<'a> MountLine<'a> {
    /// Parses one line. `None` for what the kernel does not write.
    pub fn parse(line: &'a [u8]) -> Option<MountLine<'a>> {
        let (mount, file_system) = split_once(line, b" - ")?;
        let mut mount = fields(mount);
        let (id, parent) = (decimal(mount.next()?)?, decimal(mount.next()?)?);
        let number = parsed(mount.next()?)?;
        let (root, point) = (mount.next()?, mount.next()?);
        // Optional fields follow the mount's options.
        let is_shared = mount.skip(1).any(|field| field.starts_with(b"shared:"));
        let mut fields = fields(file_system);
        let (file_system, source, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some(MountLine { id, parent, number, root, point, is_shared, file_system, source, options })
    }

    /// The lines of a whole file. Lines that are not the kernel's are left out.
    pub fn all(text: &'a [u8]) -> MountLines<'a> {
        MountLines(lines(text))
    }

    /// Where it is mounted.
    pub fn point(&self) -> Vec<u8> {
        unescaped(self.point)
    }

    /// What was mounted: a device, or any text.
    pub fn source(&self) -> Vec<u8> {
        unescaped(self.source)
    }
}

/// See [`MountLine::all`].
#[derive(Debug, Clone)]
pub struct MountLines<'a>(Lines<'a>);

impl<'a> Iterator for MountLines<'a> {
    type Item = MountLine<'a>;

    #[inline(never)]
    fn next(&mut self) -> Option<MountLine<'a>> {
        self.0.find_map(MountLine::parse)
    }
}

/// An empty field counts: a source may be empty.
fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b' ')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn every_field_of_a_line_is_read() {
        let line = br"36 35 98:0 /mnt\0401 /mnt\0402 rw,noatime shared:5 master:1 - ext3 /dev/a\043 rw,errors=continue";
        let mount = MountLine::parse(line).unwrap();
        assert_eq!((mount.id, mount.parent), (36, 35));
        assert_eq!(mount.number, DeviceNumber { major: 98, minor: 0 });
        assert_eq!((mount.root, mount.file_system), (&br"/mnt\0401"[..], &b"ext3"[..]));
        assert_eq!((mount.point(), mount.source()), (b"/mnt 2".to_vec(), b"/dev/a#".to_vec()));
        assert_eq!((mount.is_shared, mount.options), (true, &b"rw,errors=continue"[..]));
    }

    #[test]
    fn a_name_that_is_no_text_hides_neither_its_line_nor_the_next() {
        let text =
            b"36 35 98:0 /\xff /a\xfe\r rw - ext3 /dev/\x1b rw\r\n37 35 98:1 / /b rw - xfs  rw\n";
        let mounts: Vec<_> = MountLine::all(text).collect();
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].root, mounts[0].point()), (&b"/\xff"[..], b"/a\xfe\r".to_vec()));
        assert_eq!((mounts[0].source(), mounts[1].source()), (b"/dev/\x1b".to_vec(), Vec::new()));
    }

    #[rstest]
    #[case(b"36 35 0:32 / /dev rw,nosuid shared:5 master:2 - tmpfs tmpfs rw", Some(true))]
    #[case(b"36 35 0:32 / /dev rw master:2 - tmpfs tmpfs rw", Some(false))]
    #[case(b"36 35 0:32 / /shared:1 rw - tmpfs shared:5 rw", Some(false))]
    #[case(b"36", None)]
    fn a_shared_mount_is_recognized_by_its_optional_fields(
        #[case] line: &[u8],
        #[case] shared: Option<bool>,
    ) {
        assert_eq!(MountLine::parse(line).map(|mount| mount.is_shared), shared);
    }

    #[rstest]
    #[case::empty(b"")]
    #[case::no_numbers(b"a - cgroup2 c rw")]
    #[case::cut(b"36 35 8:16 / /mnt rw")]
    #[case::no_options(b"40 28 0:31 / /a rw - cgroup2 c")]
    fn what_the_kernel_does_not_write_is_left_out(#[case] line: &[u8]) {
        assert_eq!(MountLine::parse(line), None);
    }
}
