//! A table of descriptors, read a part at a time:
//! [`/proc/PID/fd`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html) by
//! [`getdents64`](https://man7.org/linux/man-pages/man2/getdents.2.html).
//!
//! The kernel makes an inode for each descriptor that it lists. A directory stream of the C library
//! asks for more than a thousand at once, so a table of a million would cost as much to begin as to
//! read. The position of a descriptor in the directory is its number plus two.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    os::fd::AsRawFd as _,
};

use nix::errno::Errno;

use super::task::Task;
use crate::text::decimal;

/// What the kernel can write in one step: about 64 descriptors.
const STEP: usize = 2048;

/// A table of descriptors, open at a position.
#[derive(Debug)]
pub(super) struct Table {
    directory: File,
    buffer: Vec<u8>,
}

impl Table {
    /// Opens the table of a thread at the descriptor `next`, or the first one behind it.
    pub(super) fn open(task: Task, next: u32) -> io::Result<Table> {
        let mut directory = File::open(task.file("fd"))?;
        directory.seek(SeekFrom::Start(u64::from(next) + 2))?;
        Ok(Table { directory, buffer: vec![0; STEP] })
    }

    /// The next descriptors in ascending order; none at the end, and where the process has ended.
    #[expect(unsafe_code, reason = "getdents64(2) has no wrapper in libc or nix")]
    pub(super) fn read(&mut self) -> Vec<u32> {
        let (directory, size) = (self.directory.as_raw_fd(), self.buffer.len());
        let buffer = self.buffer.as_mut_ptr();
        // SAFETY: the kernel writes at most `size` bytes to `buffer`, which has that size.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, directory, buffer, size) };
        let read = Errno::result(read).ok().and_then(|read| usize::try_from(read).ok());
        let mut numbers = Vec::new();
        for name in names(&self.buffer[..read.unwrap_or_default()]) {
            numbers.extend(decimal::<u32>(name));
        }
        numbers
    }
}

/// The names in a list of `struct linux_dirent64`: inode, offset, length, type, name.
fn names(mut entries: &[u8]) -> impl Iterator<Item = &[u8]> {
    const LENGTH: std::ops::Range<usize> = 16..18;
    const NAME: usize = 19;
    std::iter::from_fn(move || {
        let length = entries.get(LENGTH)?.try_into().map(u16::from_ne_bytes).ok()?;
        let (entry, rest) = entries.split_at_checked(usize::from(length))?;
        entries = rest;
        entry.get(NAME..)?.split(|&byte| byte == 0).next()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all(mut table: Table) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        loop {
            let part = table.read();
            assert!(part.is_sorted() && part.len() <= STEP / 24, "{part:?}");
            if part.is_empty() {
                return found;
            }
            found.extend(part);
        }
    }

    #[test]
    fn a_table_is_read_in_parts_from_any_descriptor_on() {
        let own = Task::first(std::process::id());
        let files: Vec<File> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        let numbers: BTreeSet<u32> =
            files.iter().map(|file| file.as_raw_fd().cast_unsigned()).collect();
        assert!(all(Table::open(own, 0).unwrap()).is_superset(&numbers));
        let middle = files[100].as_raw_fd().cast_unsigned();
        let rest = all(Table::open(own, middle).unwrap());
        assert_eq!(rest.first(), Some(&middle));
        assert!(all(Table::open(own, 1 << 30).unwrap()).is_empty());
    }

    #[test]
    fn nonsense_has_no_names() {
        for length in 0..40 {
            assert!(names(&vec![0; length]).count() < 40);
            assert_eq!(names(&vec![0xff; length]).count(), 0);
        }
    }
}
