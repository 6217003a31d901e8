//! Attributes of [sysfs](https://docs.kernel.org/filesystems/sysfs.html): one small value per file.

use std::{
    fs, io,
    io::Write as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::{dir::Dir, fcntl::OFlag, sys::stat::Mode};

use crate::{
    error::{BoxedError, Error, Result},
    kernel_file, named,
    text::displayed,
};

/// The directory of an object, to read several of its attributes: a path is walked once. What is
/// read is this object's, also if another one gets its name: when the object is removed, its
/// directory becomes empty for good.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    open: OwnedFd,
}

impl Directory {
    /// Opens a directory; `None` where it does not exist.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn open(path: PathBuf) -> Result<Option<Directory>> {
        match fs::File::open(&path) {
            Ok(open) => Ok(Some(Directory { path, open: open.into() })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(Error::system("open", &path.display())(error)),
        }
    }

    /// As [`read_bytes`]. `name` may lead into directories below.
    pub(crate) fn read_bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let open = named::openat(&self.open, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC);
        let read =
            open.map_err(io::Error::from).and_then(|file| kernel_file::attribute(file.into()));
        present(read, &self.path.join(name))
    }

    /// As [`read`].
    pub(crate) fn read<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        parsed(self.read_bytes(name)?, &self.path.join(name))
    }

    /// As [`required`].
    pub(crate) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        required(&self.path.join(name), value)
    }

    /// As [`names`], of a directory below it.
    pub(crate) fn names(&self, name: &str) -> Result<Vec<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let failed = |error| Error::system("readdir", &self.path.join(name).display())(error);
        let directory = match Dir::openat(&self.open, name, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(errno) if is_gone(&errno.into()) => return Ok(Vec::new()),
            Err(errno) => return Err(failed(errno)),
        };
        let mut names = Vec::new();
        for entry in directory {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy();
            if !matches!(&*name, "." | "..") {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }
}

/// Reads an attribute's bytes; `None` where the kernel has no such attribute (any more).
pub(crate) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    present(fs::File::open(path).and_then(kernel_file::attribute), path)
}

fn present(read: io::Result<Vec<u8>>, path: &Path) -> Result<Option<Vec<u8>>> {
    match read {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(Error::system("read", &path.display())(error)),
    }
}

/// Reads an attribute's value; `None` where the kernel has no such attribute (any more).
pub(crate) fn read<T: FromStr>(path: &Path) -> Result<Option<T>> {
    parsed(read_bytes(path)?, path)
}

fn parsed<T: FromStr>(bytes: Option<Vec<u8>>, path: &Path) -> Result<Option<T>> {
    let Some(text) = bytes.map(text) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| malformed(path, &text))
}

/// Not a part of [`parsed`], which is compiled for each type.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
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
