//! A file that is replaced as a whole: the text is written to a new file beside it, which is
//! flushed to the disk and takes the name by
//! [`rename(2)`](https://man7.org/linux/man-pages/man2/rename.2.html). Whoever reads the file sees
//! the old text or the new one.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::file_kind;

/// Replaces the file `path`, or makes it, with mode 0644 less the umask.
///
/// # Errors
/// `path` is something else than a regular file, or the text cannot be written beside it. The file
/// is then as it was.
pub(super) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(metadata) => {
            let kind = file_kind::name(metadata.file_type());
            return Err(io::Error::other(format!("it is {kind}, not a regular file")));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    // Not named after `path`, so that no collector takes it for a finished file.
    let name = format!(".ecr-runtime-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let beside = path.with_file_name(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside)?;
    let replaced = file
        .write_all(text)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if replaced.is_err() {
        let _ = fs::remove_file(&beside);
    }
    replaced
}
