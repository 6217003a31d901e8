//! What the kernel logs about a disk: [kmsg](https://docs.kernel.org/admin-guide/abi-testing.html)
//! (`/dev/kmsg`). Most drivers of file systems say there why they refuse one.
//!
//! A container with a right to `/dev/kmsg` can write there, too: the text is shown to a person, and
//! nothing is decided by it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
};

use crate::text::{readable, split_once};

const MOST_RECORDS: usize = 512;
const MOST_LINES: usize = 8;
const LONGEST_LINE: usize = 300;

/// The kernel's log from a moment on.
#[derive(Debug)]
pub(super) struct KernelLog(Option<File>);

impl KernelLog {
    /// From now on. An agent without this right gets no lines.
    pub(super) fn from_now_on() -> KernelLog {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        let at_end = |mut file: File| file.seek(SeekFrom::End(0)).map(|_| file);
        KernelLog(file.and_then(at_end).ok())
    }

    /// The lines about the disk `name` since.
    pub(super) fn about(self, name: &str) -> Vec<String> {
        let Some(mut file) = self.0 else { return Vec::new() };
        let mut lines = Vec::new();
        let mut record = vec![0; 8192];
        for _ in 0..MOST_RECORDS {
            match file.read(&mut record) {
                Ok(length) if lines.len() < MOST_LINES => {
                    lines.extend(line_about(name, &record[..length]));
                }
                // Records were overwritten before they were read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end.
                _ => break,
            }
        }
        lines
    }
}

/// The text of a record ("6,339,5140900,-;EXT4-fs (sda): …"), if it is about the disk: drivers
/// write its name in parentheses, some after the word `device`.
pub(crate) fn line_about(name: &str, record: &[u8]) -> Option<String> {
    let (_, text) = split_once(record, b";")?;
    let text = text.split(|&byte| byte == b'\n').next()?;
    let about = [format!("({name})"), format!("(device {name})"), format!("device {name} ")];
    let is_about = about.iter().any(|about| split_once(text, about.as_bytes()).is_some());
    is_about.then(|| readable(text, LONGEST_LINE))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        b"3,1,2,-;EXT4-fs (sda): VFS: Can't find it\n SUBSYSTEM=block",
        Some("EXT4-fs (sda): VFS: Can't find it")
    )]
    #[case(b"3,1,2,-;XFS (sda): bad", Some("XFS (sda): bad"))]
    #[case(b"3,1,2,-;BTRFS error (device sda): bad", Some("BTRFS error (device sda): bad"))]
    #[case(b"3,1,2,-;EXT4-fs (sdaa): bad", None)]
    #[case(b"3,1,2,-;\xff\xfe", None)]
    #[case(b"", None)]
    fn lines_about_a_disk_are_found_by_its_name(#[case] record: &[u8], #[case] line: Option<&str>) {
        assert_eq!(line_about("sda", record).as_deref(), line);
    }

    #[test]
    fn a_log_from_now_on_is_read_without_waiting() {
        assert!(KernelLog::from_now_on().about("no-such-disk").is_empty());
    }
}
