//! Finds and opens a source. Its path is resolved once, with
//! [`open(2)`](https://man7.org/linux/man-pages/man2/open.2.html) and `O_PATH`, which has no effect
//! on what is opened. Everything else uses that descriptor, or the one that is opened through it
//! and passed to QEMU; the path is never resolved again. `O_EXCL` on a block device is a claim that
//! lasts as long as any copy of the descriptor exists: the kernel refuses a later mount, mkfs or
//! second plug.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{fd, overlay, refused, root_disk};
use crate::{Error, error::Chain};

/// What a path leads to, before it is opened for use.
pub(super) struct FoundSource<'a> {
    path: &'a Path,
    /// The real path.
    pub(super) device: PathBuf,
    pub(super) is_block: bool,
    /// The `O_PATH` descriptor.
    path_fd: File,
}

impl<'a> FoundSource<'a> {
    /// Finds the source at `path`. Opening a wrong file may have an effect (a tape rewinds), so its
    /// type and number are checked first.
    pub(super) fn at(path: &'a Path) -> Result<Self, Error> {
        let path_fd =
            OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path);
        let path_fd = path_fd.map_err(|e| cannot_open(path, e))?;
        let metadata = path_fd.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let is_block = is_block_device(path, &metadata)?;
        let (given, chain) = (|| path.to_owned(), Chain::default());
        if is_block {
            match root_disk::is_root(metadata.rdev()) {
                Ok(false) => {}
                Ok(true) => return Err(Error::SourceIsRoot { path: given(), chain }),
                Err(e) => return Err(super::conflict::Conflict::unknown(e).into_error(given())),
            }
        // Opening the file of an overlay for writing would copy it.
        } else if overlay::is_stacked(&path_fd).map_err(|e| Error::system("fstatfs", path, e))? {
            return Err(Error::SourceStacked { path: given(), chain });
        }
        let device =
            fs::read_link(proc_path(&path_fd)).map_err(|e| Error::system("readlink", path, e))?;
        Ok(Self { path, device, is_block, path_fd })
    }

    /// Opens the source, and claims a block device. One that is in use is opened only to be
    /// described. Returns the file and whether the source is free.
    pub(super) fn open(&self, read_only: bool) -> Result<(File, bool), Error> {
        let path = self.path;
        let flags = if self.is_block { libc::O_EXCL | libc::O_DIRECT } else { 0 };
        let open = |write, flags| {
            OpenOptions::new()
                .read(true)
                .write(write)
                .custom_flags(flags | libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(proc_path(&self.path_fd))
        };
        match open(!read_only, flags) {
            Ok(file) => {
                // O_NONBLOCK is for the open itself only.
                let flags = fcntl(&file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
                flags
                    .and_then(|flags| fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)))
                    .map_err(|errno| Error::system("fcntl", path, errno.into()))?;
                Ok((file, true))
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                open(false, 0).map(|file| (file, false)).map_err(|e| self.refused(false, e))
            }
            Err(e)
                if !read_only
                    && matches!(
                        e.raw_os_error(),
                        Some(libc::EROFS | libc::EACCES | libc::EPERM)
                    ) =>
            {
                // Some kernels refuse to open a read-only device for writing and report another
                // errno than EROFS.
                let is_read_only = self.is_block
                    && (e.raw_os_error() == Some(libc::EROFS)
                        || open(false, 0)
                            .is_ok_and(|file| fd::read_only(file.as_fd()).is_ok_and(|ro| ro != 0)));
                Err(if is_read_only {
                    Error::SourceReadOnly { path: path.to_owned() }
                } else {
                    self.refused(true, e)
                })
            }
            Err(e) => Err(self.refused(false, e)),
        }
    }

    /// Returns the error of a failed open, with its cause.
    fn refused(&self, write: bool, e: io::Error) -> Error {
        match e.raw_os_error() {
            Some(errno) if refused::is_refusal(&e) => Error::SourceRefused {
                path: self.path.to_owned(),
                write,
                refusal: refused::cause(&self.path_fd, self.is_block, write, errno),
            },
            _ => cannot_open(self.path, e),
        }
    }
}

/// Returns a path that leads to what `file` is open on, whatever its original path leads to by now.
fn proc_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Whether the file is a block device and not a regular file; all other types are an error.
fn is_block_device(path: &Path, metadata: &fs::Metadata) -> Result<bool, Error> {
    let kind = metadata.file_type();
    let other = match () {
        () if kind.is_block_device() => return Ok(true),
        () if kind.is_file() => return Ok(false),
        () if kind.is_dir() => "directory",
        () if kind.is_char_device() => "character device",
        () if kind.is_fifo() => "pipe",
        () => "socket",
    };
    Err(Error::SourceKind { path: path.to_owned(), kind: other })
}

fn cannot_open(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::SourceNotFound { path: path.to_owned() }
        }
        _ => Error::system("open", path, e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_not_resolved_again_after_the_source_was_found() {
        let file_of = |size| {
            let file = tempfile::NamedTempFile::new().unwrap();
            file.as_file().set_len(size).unwrap();
            file
        };
        let (path, other) = (file_of(512).into_temp_path(), file_of(1024));
        let found = FoundSource::at(&path).unwrap();
        fs::rename(other.path(), &path).unwrap();
        let (file, _) = found.open(false).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 512);
    }
}
