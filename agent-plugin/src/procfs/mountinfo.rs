//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html): one
//! mount per line.
//!
//! ```text
//! 36 35 98:0 /root /point rw,noatime shared:5 master:1 - ext3 /dev/source rw,errors=continue
//! ```
//!
//! The kernel writes a character that would break the line as a backslash and three octal digits:
//! blank, tab, newline and backslash in every field, and `#` in the source, too.

use crate::{block::DeviceNumber, text::decimal};

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
    pub root: &'a str,
    point: &'a str,
    /// Whether the mount is in a peer group, so that a mount below it propagates.
    pub is_shared: bool,
    /// Type of the file system.
    pub file_system: &'a str,
    source: &'a str,
    /// Options of the file system, separated by commas.
    pub options: &'a str,
}

impl<'a> MountLine<'a> {
    /// Parses one line. `None` for what the kernel does not write.
    pub fn parse(line: &'a str) -> Option<MountLine<'a>> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ');
        let id = mount.next()?.parse().ok()?;
        let parent = mount.next()?.parse().ok()?;
        let number = mount.next()?.parse().ok()?;
        let (root, point) = (mount.next()?, mount.next()?);
        // Optional fields follow the mount's options.
        let is_shared = mount.skip(1).any(|field| field.starts_with("shared:"));
        let mut fields = file_system.split(' ');
        let (file_system, source, options) = (fields.next()?, fields.next()?, fields.next()?);
        Some(MountLine { id, parent, number, root, point, is_shared, file_system, source, options })
    }

    /// The lines of a whole file. Lines that are not the kernel's are left out.
    pub fn all(text: &'a str) -> impl Iterator<Item = MountLine<'a>> {
        text.lines().filter_map(MountLine::parse)
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

/// A field as it was before the kernel escaped it.
fn unescaped(field: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let escaped = behind.split_first_chunk().filter(|_| first == b'\\');
        let escaped = escaped.and_then(|(digits, behind)| Some((octal(digits)?, behind)));
        let (byte, behind) = escaped.unwrap_or((first, behind));
        bytes.push(byte);
        rest = behind;
    }
    bytes
}

/// Digits only: `from_str_radix` would accept a leading plus sign.
fn octal(digits: &[u8; 3]) -> Option<u8> {
    let text = str::from_utf8(digits).ok()?;
    decimal::<u32>(text)?;
    u8::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn every_field_of_a_line_is_read() {
        let line = r"36 35 98:0 /mnt\0401 /mnt\0402 rw,noatime shared:5 master:1 - ext3 /dev/a\043 rw,errors=continue";
        let mount = MountLine::parse(line).unwrap();
        assert_eq!((mount.id, mount.parent), (36, 35));
        assert_eq!(mount.number, DeviceNumber { major: 98, minor: 0 });
        assert_eq!((mount.root, mount.file_system), (r"/mnt\0401", "ext3"));
        assert_eq!((mount.point(), mount.source()), (b"/mnt 2".to_vec(), b"/dev/a#".to_vec()));
        assert_eq!((mount.is_shared, mount.options), (true, "rw,errors=continue"));
    }

    #[rstest]
    #[case("36 35 0:32 / /dev rw,nosuid shared:5 master:2 - tmpfs tmpfs rw", Some(true))]
    #[case("36 35 0:32 / /dev rw master:2 - tmpfs tmpfs rw", Some(false))]
    #[case("36 35 0:32 / /shared:1 rw - tmpfs shared:5 rw", Some(false))]
    #[case("36", None)]
    fn a_shared_mount_is_recognized_by_its_optional_fields(
        #[case] line: &str,
        #[case] shared: Option<bool>,
    ) {
        assert_eq!(MountLine::parse(line).map(|mount| mount.is_shared), shared);
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_numbers("a - cgroup2 c rw")]
    #[case::cut("36 35 8:16 / /mnt rw")]
    #[case::no_options("40 28 0:31 / /a rw - cgroup2 c")]
    fn what_the_kernel_does_not_write_is_left_out(#[case] line: &str) {
        assert_eq!(MountLine::parse(line), None);
    }

    #[rstest]
    #[case::plain("/dev/xvda", "/dev/xvda")]
    #[case::all(r"a\040b\011c\012d\134e\043f", "a b\tc\nd\\e#f")]
    #[case::a_backslash_before_digits(r"\134040", r"\040")]
    #[case::no_octal_number(r"\9\400\+12\-12", r"\9\400\+12\-12")]
    #[case::cut(r"a\04", r"a\04")]
    fn fields_are_read_as_the_kernel_writes_them(#[case] field: &str, #[case] plain: &str) {
        assert_eq!(unescaped(field), plain.as_bytes());
    }
}
