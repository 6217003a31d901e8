//! Files that the kernel writes while they are read:
//! [proc(5)](https://man7.org/linux/man-pages/man5/proc.5.html),
//! [sysfs(5)](https://man7.org/linux/man-pages/man5/sysfs.5.html). None has a size, and a read that
//! is too short costs one more walk through what it lists. `std::fs::read` asks for the size, and
//! begins with 32 bytes.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use crate::text::lines;

/// A page, as the kernel fills one at a time.
const PAGE: usize = 4096;
/// Some lines of a list: the kernel writes no more of it than a read asks for.
const FEW: usize = 1024;

/// Reads a file.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    rest(File::open(path.as_ref())?)
}

/// Reads what is left of an open file.
pub(crate) fn rest(mut file: File) -> io::Result<Vec<u8>> {
    let (mut bytes, mut length) = (vec![0; PAGE], 0);
    loop {
        match read_some(&mut file, &mut bytes[length..])? {
            0 => break,
            read => length += read,
        }
        if length == bytes.len() {
            bytes.resize(2 * length, 0);
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Passes the lines of an open file to `is_last`, and reads no further than to the one for which
/// that is true.
#[inline(never)]
pub(crate) fn lines_until(
    mut file: File,
    is_last: &mut dyn FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    let (mut bytes, mut length) = (vec![0; FEW], 0);
    loop {
        let read = read_some(&mut file, &mut bytes[length..])?;
        length += read;
        let text = &bytes[..length];
        // The last line may go on.
        let whole = match text.iter().rposition(|&byte| byte == b'\n') {
            _ if read == 0 => length,
            Some(end) => end + 1,
            None => 0,
        };
        if lines(&text[..whole]).any(&mut *is_last) || read == 0 {
            return Ok(());
        }
        bytes.copy_within(whole..length, 0);
        length -= whole;
        if length + FEW > bytes.len() {
            bytes.resize(2 * bytes.len(), 0);
        }
    }
}

/// Reads an attribute of sysfs, which the kernel hands over as a whole: at most a page.
pub(crate) fn attribute(mut file: File) -> io::Result<Vec<u8>> {
    let mut bytes = [0; PAGE];
    let length = read_some(&mut file, &mut bytes)?;
    Ok(bytes[..length].to_vec())
}

fn read_some(file: &mut File, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, fs};

    use super::*;

    #[test]
    fn a_long_file_is_read_whole() {
        let long = tempfile::NamedTempFile::new().unwrap();
        let mut text = String::new();
        for number in 0..4000 {
            writeln!(text, "{number}").unwrap();
        }
        fs::write(long.path(), &text).unwrap();
        assert_eq!(read(long.path()).unwrap(), text.as_bytes());
        let exactly = &text.as_bytes()[..PAGE];
        fs::write(long.path(), exactly).unwrap();
        assert_eq!(read(long.path()).unwrap(), exactly);
    }

    #[test]
    fn lines_are_read_up_to_the_last_one_that_is_wanted() {
        let long = "x".repeat(3 * PAGE);
        let text = format!("a\n\n{long}\nb\r\n{}end", "c\n".repeat(PAGE));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &text).unwrap();
        let until = |last: &str| {
            let mut found = Vec::new();
            let mut is_last = |line: &[u8]| {
                found.push(String::from_utf8(line.to_vec()).unwrap());
                line == last.as_bytes()
            };
            lines_until(File::open(file.path()).unwrap(), &mut is_last).unwrap();
            found
        };
        assert_eq!(until("a"), ["a"]);
        assert_eq!(until("b\r"), ["a", "", &long, "b\r"]);
        let all: Vec<_> = text.split('\n').collect();
        assert_eq!(until("end"), all);
        assert_eq!(until("nothing"), all);
    }

    /// It has a line for each symbol of the kernel, in many reads. Those of modules and of programs
    /// come last, and may change meanwhile.
    #[test]
    fn a_file_of_the_kernel_is_read_whole() {
        const STABLE: usize = 1 << 20;
        let symbols = read("/proc/kallsyms").unwrap();
        let expected = fs::read("/proc/kallsyms").unwrap();
        assert!(symbols[..STABLE] == expected[..STABLE]);
        assert!(symbols.ends_with(b"\n"), "{} bytes", symbols.len());
    }

    #[test]
    fn an_attribute_is_read_at_once() {
        let path = "/sys/class/block/loop0/dev";
        assert_eq!(attribute(File::open(path).unwrap()).unwrap(), fs::read(path).unwrap());
    }

    #[test]
    fn a_missing_file_is_an_error() {
        assert_eq!(read("/proc/nope").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
