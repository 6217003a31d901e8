//! A file below `/etc` that appears as a whole or not at all: it is written beside its place,
//! flushed to the disk, and gets its name by
//! [`link(2)`](https://man7.org/linux/man-pages/man2/link.2.html), which replaces nothing.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use block_volume_qmp::{PathError, Trust};

use crate::Error;

/// Makes the file `path` with mode 0644. It is written in `beside` first, a directory of the same
/// file system in which no program takes it for something else.
///
/// # Errors
/// There is such a file already, or it cannot be written. Nothing is left then.
pub(crate) fn create(path: &Path, beside: &Path, text: &str) -> Result<(), Error> {
    let name = format!(".ecr-runtime-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let draft = beside.join(name);
    let made = write(&draft, text)
        .and_then(|()| fs::hard_link(&draft, path))
        .and_then(|()| flush_directory_of(path));
    // In vain if it was not made.
    let _ = fs::remove_file(&draft);
    made.map_err(|e| Error::system("write", path, e))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()
}

/// Removes the file `path`.
///
/// # Errors
/// It cannot be removed.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let removed = fs::remove_file(path).and_then(|()| flush_directory_of(path));
    removed.map_err(|e| Error::system("unlink", path, e))
}

/// Makes the directory `path` with mode 0755.
///
/// # Errors
/// It exists, or cannot be made.
pub(crate) fn create_directory(path: &Path) -> Result<(), Error> {
    let made = DirBuilder::new()
        .mode(0o755)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755)));
    made.map_err(|e| Error::system("mkdir", path, e))
}

/// Removes the directory `path`, if it is empty; returns whether it did.
pub(crate) fn remove_directory_if_empty(path: &Path) -> bool {
    fs::remove_dir(path).is_ok()
}

/// Checks that root alone could change what is written in the directory `path`.
///
/// # Errors
/// It does not exist, or is not trusted.
pub(crate) fn check_trusted(path: &Path) -> Result<(), Error> {
    match Trust::root().locate(path) {
        Ok(_) => Ok(()),
        Err(PathError::Untrusted(why)) => Err(why.into()),
        Err(PathError::Io(e)) => Err(Error::system("open", path, e)),
    }
}

/// Checks that root alone could have written the file `path`.
///
/// # Errors
/// It is no regular file, or is not trusted.
pub(crate) fn check_trusted_file(path: &Path) -> Result<(), Error> {
    match Trust::root().locate(path).and_then(|located| located.open_file()) {
        Ok(_) => Ok(()),
        Err(PathError::Untrusted(why)) => Err(why.into()),
        Err(PathError::Io(e)) => Err(Error::system("open", path, e)),
    }
}

fn flush_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn names(directory: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn a_file_is_made_and_never_replaced() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("config.d");
        create_directory(&directory).unwrap();
        let file = directory.join("file");
        create(&file, root.path(), "one\n").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
        assert!(create(&file, root.path(), "two\n").is_err());
        assert_eq!(fs::read(&file).unwrap(), b"one\n");
        assert_eq!(names(&directory), [file.as_path()]);
        assert_eq!(names(root.path()), [directory.as_path()]);
        assert!(!remove_directory_if_empty(&directory));
        remove(&file).unwrap();
        assert!(remove_directory_if_empty(&directory));
    }
}
