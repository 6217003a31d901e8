//! The record of a wrapper: a file with the path of the QEMU that it becomes, named after the
//! wrapper's file. The wrapper itself reads it (see `wrapper`).

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use super::below;
use crate::Error;

/// The directory of records.
const DIRECTORY: &str = "/etc/ecr-runtime";

/// The directory of records of the node at `root`.
pub(crate) fn directory(root: &Path) -> PathBuf {
    below(root, Path::new(DIRECTORY))
}

/// The record of `wrapper`.
pub(crate) fn of(root: &Path, wrapper: &Path) -> PathBuf {
    let mut name = wrapper.file_name().unwrap_or_default().to_owned();
    name.push(".path");
    directory(root).join(name)
}

/// Which QEMU is recorded; `None` if there is no such record.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read(record: &Path) -> Result<Option<PathBuf>, Error> {
    match fs::read(record) {
        Ok(text) => Ok(Some(OsString::from_vec(text.trim_ascii().to_vec()).into())),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(Error::system("open", record, e)),
    }
}
