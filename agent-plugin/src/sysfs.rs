//! Attributes of [sysfs](https://docs.kernel.org/filesystems/sysfs.html): one small value per file.

use std::{fs, io, io::Write as _, path::Path, str::FromStr};

use crate::{
    error::{BoxedError, Error, Result},
    text::displayed,
};

/// Reads an attribute's bytes; `None` where the kernel has no such attribute (any more).
pub(crate) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(Error::system("read", &path.display())(error)),
    }
}

/// Reads an attribute's value; `None` where the kernel has no such attribute (any more).
pub(crate) fn read<T: FromStr>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| malformed(path, &text))
}

/// Not a part of [`read`], which is compiled for each type.
fn read_text(path: &Path) -> Result<Option<String>> {
    let bytes = read_bytes(path)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned()))
}

#[cold]
fn malformed(path: &Path, text: &str) -> BoxedError {
    let (subject, found) = (displayed(&path.display()), text.chars().take(80).collect());
    BoxedError::from(Error::Malformed { subject, found })
}

/// The value of an attribute that must exist.
pub(crate) fn required<T>(path: &Path, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| missing(path))
}

#[cold]
fn missing(path: &Path) -> BoxedError {
    let missing = io::Error::from_raw_os_error(libc::ENOENT);
    Error::system("read", &path.display())(missing)
}

/// Writes an attribute, with one `write` call as the kernel requires.
pub(crate) fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Whether such an object exists.
pub(crate) fn exists(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Reads the names in a directory of sysfs; none where it does not exist.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::system("readdir", &path.display())(error);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        // The kernel's own names are ASCII.
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Whether the object was removed: before the open (ENOENT) or after it (ENODEV, ENXIO).
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_value_of_the_running_kernel() {
        let loops: Option<u64> = read(Path::new("/sys/class/block/loop0/size")).unwrap();
        assert!(loops.is_some(), "these tests need the loop module (/sys/class/block/loop0)");
        let error = read::<u64>(Path::new("/sys/class/block/loop0/dev")).unwrap_err();
        assert!(error.message().contains("reads \"7:0"), "{error}");
    }

    #[test]
    fn a_missing_attribute_is_none() {
        assert_eq!(read::<u64>(Path::new("/sys/class/block/nope/size")).unwrap(), None);
        assert!(names(Path::new("/sys/class/nope")).unwrap().is_empty());
    }
}
