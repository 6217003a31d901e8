//! Sources: block devices and image files on the host. The path of a source is resolved once, with
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

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::{major, minor},
};

use super::{
    fd::{self, OtherOpeners},
    holders::{self, FileId, Holder, OpenSource},
    root_disk,
};
use crate::Error;

/// A vetted source.
#[derive(Debug)]
pub struct Source {
    /// The path as the user gave it.
    pub given: PathBuf,
    /// The real path.
    pub device: PathBuf,
    /// What distinguishes it from every other source on this host: `b:major:minor:diskseq` or
    /// `f:dev:inode`.
    pub identity: String,
    /// The size in bytes.
    pub size: u64,
    /// How it is opened, and how QEMU must use it.
    pub kind: SourceKind,
    file_id: FileId,
    read_only: bool,
    state: ClaimState,
    /// For a file: it has no other opening at all, not even for reading.
    exclusive: bool,
}

/// How a source is opened, and how QEMU must use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A block device, opened with `O_DIRECT`.
    Block {
        /// The logical block size in bytes.
        logical_block_size: u32,
        /// The physical block size in bytes.
        physical_block_size: u32,
    },
    /// A raw image file, opened without `O_DIRECT`.
    File,
}

/// Whether this process may use the source.
#[derive(Debug)]
enum ClaimState {
    /// It may: this is the descriptor that claims it.
    Claimed(File),
    /// In use. The holder is determined only when it is needed.
    InUse,
    /// In use by this holder.
    HeldBy(Holder),
}

impl Source {
    /// Opens and vets the source at `path`. A source that something else uses is described too, but
    /// has no [`claim`](Self::claim): the VM that it is meant for may already use it.
    ///
    /// # Errors
    /// The source does not exist, or is not safe to use.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let mut source = Self::open_one(path, read_only)?;
        find_conflicting_holders(std::slice::from_mut(&mut source));
        Ok(source)
    }

    /// Opens and vets several sources. Their other holders are determined together, in one pass.
    ///
    /// # Errors
    /// As [`open`](Self::open), for the first source that fails.
    pub fn open_all(paths: &[PathBuf], read_only: bool) -> Result<Vec<Self>, Error> {
        let mut sources = paths
            .iter()
            .map(|path| Self::open_one(path, read_only))
            .collect::<Result<Vec<_>, _>>()?;
        find_conflicting_holders(&mut sources);
        Ok(sources)
    }

    fn open_one(path: &Path, read_only: bool) -> Result<Self, Error> {
        let found = FoundSource::at(path)?;
        let (file, mut is_free) = found.open(read_only)?;
        let metadata = file.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let vetted = match found.is_block {
            true => block(path, &file, &metadata, read_only),
            false => image(path, &metadata),
        };
        let (identity, size, kind, file_id) = vetted?;
        let mut exclusive = true;
        if kind == SourceKind::File {
            let openers = other_openers(path, &file)?;
            is_free = is_available(openers, read_only);
            exclusive = openers == OtherOpeners::None;
        }
        let state = if is_free { ClaimState::Claimed(file) } else { ClaimState::InUse };
        Ok(Self {
            given: path.to_owned(),
            device: found.device,
            identity,
            size,
            kind,
            file_id,
            read_only,
            state,
            exclusive,
        })
    }

    /// Returns the descriptor for QEMU, after a second check that the source behind it has not
    /// changed.
    ///
    /// # Errors
    /// Something else uses the source: the error names the holder. Or the source has changed.
    pub fn claim(&self) -> Result<&File, Error> {
        let path = self.given.clone();
        let holder = match &self.state {
            ClaimState::Claimed(file) if self.is_still_free(file)? => return Ok(file),
            ClaimState::HeldBy(holder) => holder.clone(),
            ClaimState::Claimed(_) | ClaimState::InUse => holders::holder(self.file_id),
        };
        Err(match holder {
            Holder::Mount(mount_point) => Error::SourceMounted { path, mount_point },
            holder => Error::SourceHeld { path, holder: holder.to_string() },
        })
    }

    /// Whether it is certain that no QEMU has anything of this source, not even a leftover of a
    /// killed run: that QEMU would have a file open, and a block device claimed.
    pub fn is_exclusive(&self) -> bool {
        self.exclusive && self.is_claimed()
    }

    /// Whether this process may use the source: nothing else uses it.
    pub fn is_claimed(&self) -> bool {
        matches!(self.state, ClaimState::Claimed(_))
    }

    /// Whether the source is still the same and still unused. Meanwhile a loop device may have got
    /// another file, a mapping another table, an image another length or another opener.
    fn is_still_free(&self, file: &File) -> Result<bool, Error> {
        let path = &self.given;
        let metadata = file.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let now = match self.kind {
            SourceKind::Block { .. } => block(path, file, &metadata, self.read_only),
            SourceKind::File => image(path, &metadata),
        };
        match now {
            Ok((identity, size, ..)) if identity == self.identity && size == self.size => {}
            _ => return Err(Error::SourceChanged { path: path.clone() }),
        }
        // The claim keeps a block device free.
        Ok(self.kind != SourceKind::File
            || is_available(other_openers(path, file)?, self.read_only))
    }
}

/// Finds holders that use a source although it could be claimed.
fn find_conflicting_holders(sources: &mut [Source]) {
    let needs_check = |source: &&mut Source| match &source.state {
        // For most files the lease has answered this already.
        ClaimState::Claimed(file) if source.kind == SourceKind::File => {
            fd::other_openers(file.as_fd()).is_ok_and(|openers| openers == OtherOpeners::Unknown)
        }
        ClaimState::Claimed(_) => true,
        ClaimState::InUse | ClaimState::HeldBy(_) => false,
    };
    let mut checked: Vec<_> = sources.iter_mut().filter(needs_check).collect();
    let open: Vec<_> = checked
        .iter()
        .map(|source| OpenSource { file_id: source.file_id, read_only: source.read_only })
        .collect();
    for (source, holder) in checked.iter_mut().zip(holders::conflicting_holders(&open)) {
        if let Some(holder) = holder {
            source.state = ClaimState::HeldBy(holder);
        }
    }
}

/// What a path leads to, before it is opened for use.
struct FoundSource<'a> {
    path: &'a Path,
    /// The real path.
    device: PathBuf,
    is_block: bool,
    /// The `O_PATH` descriptor.
    path_fd: File,
}

impl<'a> FoundSource<'a> {
    /// Finds the source at `path`. Opening a wrong file may have an effect (a tape rewinds), so its
    /// type and number are checked first.
    fn at(path: &'a Path) -> Result<Self, Error> {
        let path_fd =
            OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path);
        let path_fd = path_fd.map_err(|e| cannot_open(path, e))?;
        let metadata = path_fd.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let is_block = is_block_device(path, &metadata)?;
        if is_block && root_disk::is_root(metadata.rdev()) {
            return Err(Error::SourceIsRoot { path: path.to_owned() });
        }
        let device =
            fs::read_link(proc_path(&path_fd)).map_err(|e| Error::system("readlink", path, e))?;
        Ok(Self { path, device, is_block, path_fd })
    }

    /// Opens the source, and claims a block device. One that is in use is opened only to be
    /// described. Returns the file and whether the source is free.
    fn open(&self, read_only: bool) -> Result<(File, bool), Error> {
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
                open(false, 0).map(|file| (file, false)).map_err(|e| cannot_open(path, e))
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
                let is_read_only = e.raw_os_error() == Some(libc::EROFS)
                    || open(false, 0)
                        .is_ok_and(|file| fd::read_only(file.as_fd()).is_ok_and(|ro| ro != 0));
                Err(if is_read_only {
                    Error::SourceReadOnly { path: path.to_owned() }
                } else {
                    cannot_open(path, e)
                })
            }
            Err(e) => Err(cannot_open(path, e)),
        }
    }
}

/// Returns a path that leads to what `file` is open on, whatever its original path leads to by now.
fn proc_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Returns which other openings of the image there are.
fn other_openers(path: &Path, file: &File) -> Result<OtherOpeners, Error> {
    fd::other_openers(file.as_fd()).map_err(|e| Error::system("fcntl", path, e))
}

/// Whether an image with these other openers may be used. Readers do not conflict with each other.
/// Where the file system has no leases, `/proc` is searched later.
fn is_available(openers: OtherOpeners, read_only: bool) -> bool {
    match openers {
        OtherOpeners::None | OtherOpeners::Unknown => true,
        OtherOpeners::Readers => read_only,
        OtherOpeners::Writers => false,
    }
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

/// The identity, size, kind and file ID of a vetted source.
type Vetted = (String, u64, SourceKind, FileId);

fn block(
    path: &Path,
    file: &File,
    metadata: &fs::Metadata,
    read_only: bool,
) -> Result<Vetted, Error> {
    let failed = |e| Error::system("ioctl", path, e);
    let device = file.as_fd();
    if !read_only && fd::read_only(device).map_err(failed)? != 0 {
        return Err(Error::SourceReadOnly { path: path.to_owned() });
    }
    let size = fd::size(device).map_err(failed)?;
    if size == 0 {
        return Err(Error::SourceEmpty { path: path.to_owned() });
    }
    let kind = SourceKind::Block {
        logical_block_size: u32::try_from(fd::logical_block_size(device).map_err(failed)?)
            .unwrap_or(512),
        physical_block_size: fd::physical_block_size(device).map_err(failed)?,
    };
    // Kernels before 5.15 have no disk sequence number.
    let sequence = fd::disk_sequence(device).unwrap_or(0);
    let number = metadata.rdev();
    Ok((
        format!("b:{}:{}:{sequence}", major(number), minor(number)),
        size,
        kind,
        FileId::Block(number),
    ))
}

fn image(path: &Path, metadata: &fs::Metadata) -> Result<Vetted, Error> {
    let (device, inode, size) = (metadata.dev(), metadata.ino(), metadata.len());
    match size {
        0 => Err(Error::SourceEmpty { path: path.to_owned() }),
        _ if !size.is_multiple_of(512) => {
            Err(Error::SourceUnaligned { path: path.to_owned(), size })
        }
        _ => {
            Ok((format!("f:{device}:{inode}"), size, SourceKind::File, FileId::File(device, inode)))
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
