//! What the kernel prints in [`/proc`](https://man7.org/linux/man-pages/man5/proc.5.html) and
//! [sysfs](https://man7.org/linux/man-pages/man5/sysfs.5.html). It is bytes: names of files,
//! processes and devices need not be UTF-8. An error names the file, because a check that cannot
//! look must say why.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::sys::stat::makedev;

/// What a file is first read with: most have less.
const PAGE: usize = 4096;

/// Reads a file of the kernel.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    bytes(path.as_ref()).map_err(of(&path))
}

/// Reads a file of the kernel; the error is that of the call. Such a file has no size, and
/// `std::fs::read` would begin with 32 bytes of it.
pub(crate) fn bytes(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path.as_ref())?;
    let (mut bytes, mut length) = (vec![0; PAGE], 0);
    loop {
        match file.read(&mut bytes[length..]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(0) => break,
            Ok(read) => length += read,
        }
        if length == bytes.len() {
            bytes.resize(2 * length, 0);
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Returns the paths in `directory`; none if it does not exist.
pub(crate) fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(of(directory))?,
    };
    entries.map(|entry| Ok(entry.map_err(of(directory))?.path())).collect()
}

/// Returns a function that makes an error one of `path`.
pub(crate) fn of(path: impl AsRef<Path>) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.as_ref().display()))
}

/// An error of a file whose content is not as documented.
pub(crate) fn malformed(path: impl AsRef<Path>, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.as_ref().display()))
}

/// Reads a decimal number, with or without a newline.
pub(crate) fn number<T: FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// Reads a device number, such as `8:16`.
pub(crate) fn device_number(text: &[u8]) -> Option<u64> {
    let colon = text.iter().position(|&byte| byte == b':')?;
    Some(makedev(number(&text[..colon])?, number(&text[colon + 1..])?))
}

/// Returns the bytes for which the kernel prints `\` and three octal digits, in `/proc/swaps` as in
/// `/proc/self/mountinfo`.
pub(crate) fn unescape(text: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.first_chunk::<3>().filter(|_| first == b'\\');
        let value =
            digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(value.unwrap_or(first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_bytes_are_read_and_others_kept() {
        let read = |text: &[u8]| unescape(text).into_vec();
        assert_eq!(read(b"/a\\040b\\134\\377"), b"/a b\\\xff");
        assert_eq!(read(b"/a\\04"), b"/a\\04");
        assert_eq!(read(b"\\999\\"), b"\\999\\");
    }

    #[test]
    fn numbers_are_read_and_other_bytes_are_none() {
        assert_eq!(device_number(b"8:16\n"), Some(makedev(8, 16)));
        assert_eq!([device_number(b"8"), device_number(b"8:\xff"), device_number(b"")], [None; 3]);
        assert_eq!((number::<u64>(b"12\n"), number::<u64>(b"-")), (Some(12), None));
    }

    #[test]
    fn long_and_short_files_are_read_whole() {
        // Of the symbols of the kernel, those of modules and BPF programs come last, and change.
        for (path, stable) in [("/proc/kallsyms", 1 << 20), ("/proc/self/cgroup", 1)] {
            let read = bytes(path).unwrap();
            assert_eq!(read[..stable], fs::read(path).unwrap()[..stable]);
            assert!(read.ends_with(b"\n"), "{path}: {} bytes", read.len());
        }
        let exactly = tempfile::NamedTempFile::new().unwrap();
        fs::write(exactly.path(), [7; PAGE]).unwrap();
        assert_eq!(bytes(exactly.path()).unwrap(), [7; PAGE]);
    }

    #[test]
    fn an_error_names_the_file() {
        let error = read("/proc/self/absent").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("/proc/self/absent: "), "{error}");
        assert!(entries(Path::new("/proc/self/absent")).unwrap().is_empty());
    }
}
