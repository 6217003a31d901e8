//! The files in a run directory: they are read only if nobody but the runtime could have written
//! them.

use std::{fs::File, io, path::Path};

use block_volume_qmp::{PathError, Trust};

use crate::Error;

/// Opens a file for reading; `None` if it does not exist.
///
/// # Errors
/// It cannot be opened, or is not trusted.
pub(super) fn open(file: &Path, trust: &Trust) -> Result<Option<File>, Error> {
    let opened = trust.locate(file).and_then(|found| found.open_file());
    opened.map(Some).or_else(|e| or_none(e, file))
}

/// Checks `directory` and each one above it, if it exists.
///
/// # Errors
/// One of them is not trusted.
pub(super) fn check_directory(directory: &Path, trust: &Trust) -> Result<(), Error> {
    trust
        .locate(directory)
        .map(drop)
        .or_else(|e| or_none(e, directory).map(Option::unwrap_or_default))
}

fn or_none<T>(error: PathError, path: &Path) -> Result<Option<T>, Error> {
    match error {
        PathError::Untrusted(why) => Err(why.into()),
        PathError::Io(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        PathError::Io(e) => Err(Error::system("open", path, e)),
    }
}
