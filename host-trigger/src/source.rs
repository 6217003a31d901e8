//! The volume on the host: found once
//! ([`open(2)`](https://man7.org/linux/man-pages/man2/open.2.html) with `O_PATH`, which has no
//! effect on what is opened), and everything about it asked through that descriptor and the one
//! that is opened through it, which is then QEMU's: there is no second look at the path. `O_EXCL`
//! on a block device is a claim that lasts as long as any copy of the descriptor does: a later
//! mount, mkfs or second plug is refused by the kernel.

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

use crate::{
    Error,
    descriptor::{self, Others},
    holders::{self, Held, Holder, Taken},
    root_disk,
};

/// A vetted volume.
#[derive(Debug)]
pub struct Source {
    /// As the user named it.
    pub given: PathBuf,
    /// The real path.
    pub device: PathBuf,
    /// What tells it from every other volume of this host: `b:major:minor:diskseq` or
    /// `f:dev:inode`.
    pub identity: String,
    /// In bytes.
    pub size: u64,
    /// How it is opened, and how QEMU must use it.
    pub kind: Kind,
    held: Held,
    read_only: bool,
    state: State,
    /// Of a file: nobody else has it open at all.
    sole: bool,
}

/// How a volume is opened, and how QEMU must use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A block device, opened with `O_DIRECT`.
    Block {
        /// In bytes.
        logical_block_size: u32,
        /// In bytes.
        physical_block_size: u32,
    },
    /// A raw image, opened without.
    File,
}

/// Whose it is.
#[derive(Debug)]
enum State {
    /// Ours.
    Claimed(File),
    /// In use; by whom is looked for when it matters.
    InUse,
    /// In use by this one.
    Held(Holder),
}

impl Source {
    /// Opens and vets the volume at `path`. A volume that somebody else has in use is described all
    /// the same, without a [`claim`](Self::claim): it may be in use by the very VM that it is meant
    /// for.
    ///
    /// # Errors
    /// It is not there, or not fit.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let mut source = Self::take(path, read_only)?;
        look_for_others(std::slice::from_mut(&mut source));
        Ok(source)
    }

    /// The same for several volumes, with one look at who has them in use.
    ///
    /// # Errors
    /// As [`open`](Self::open), for the first that is not fit.
    pub fn open_all(paths: &[PathBuf], read_only: bool) -> Result<Vec<Self>, Error> {
        let mut sources =
            paths.iter().map(|path| Self::take(path, read_only)).collect::<Result<Vec<_>, _>>()?;
        look_for_others(&mut sources);
        Ok(sources)
    }

    fn take(path: &Path, read_only: bool) -> Result<Self, Error> {
        let found = Found::at(path)?;
        let (file, mut is_free) = found.open(read_only)?;
        let metadata = file.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let vetted = match found.is_block {
            true => block(path, &file, &metadata, read_only),
            false => image(path, &metadata),
        };
        let (identity, size, kind, held) = vetted?;
        let mut sole = true;
        if kind == Kind::File {
            let others = others(path, &file)?;
            is_free = may_be_taken(others, read_only);
            sole = others == Others::None;
        }
        let state = if is_free { State::Claimed(file) } else { State::InUse };
        Ok(Self {
            given: path.to_owned(),
            device: found.device,
            identity,
            size,
            kind,
            held,
            read_only,
            state,
            sole,
        })
    }

    /// The descriptor for QEMU. What it leads to is asked once more: it is what it was.
    ///
    /// # Errors
    /// Somebody else has the volume in use, and this says who; or it is not what it was.
    pub fn claim(&self) -> Result<&File, Error> {
        let path = self.given.clone();
        let holder = match &self.state {
            State::Claimed(file) if self.is_still_free(file)? => return Ok(file),
            State::Held(holder) => holder.clone(),
            State::Claimed(_) | State::InUse => holders::holder(self.held),
        };
        Err(match holder {
            Holder::Mount(mount_point) => Error::SourceMounted { path, mount_point },
            holder => Error::SourceHeld { path, holder: holder.to_string() },
        })
    }

    /// It is certain that no QEMU has anything of this volume, not even what a killed run left:
    /// that would have it open, and a device claimed.
    pub fn is_sole(&self) -> bool {
        self.sole && self.is_claimed()
    }

    /// Nobody else has it in use.
    pub fn is_claimed(&self) -> bool {
        matches!(self.state, State::Claimed(_))
    }

    /// A loop device may have got another file, a mapping another table, an image another length or
    /// somebody who opened it.
    fn is_still_free(&self, file: &File) -> Result<bool, Error> {
        let path = &self.given;
        let metadata = file.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let now = match self.kind {
            Kind::Block { .. } => block(path, file, &metadata, self.read_only),
            Kind::File => image(path, &metadata),
        };
        match now {
            Ok((identity, size, ..)) if identity == self.identity && size == self.size => {}
            _ => return Err(Error::SourceChanged { path: path.clone() }),
        }
        // Of a device the claim has seen to that.
        Ok(self.kind != Kind::File || may_be_taken(others(path, file)?, self.read_only))
    }
}

/// Finds those who use a volume although it could be taken.
fn look_for_others(sources: &mut [Source]) {
    let is_asked = |source: &&mut Source| match &source.state {
        // Of most files a lease has told already.
        State::Claimed(file) if source.kind == Kind::File => {
            descriptor::others(file.as_fd()).is_ok_and(|others| others == Others::Unknown)
        }
        State::Claimed(_) => true,
        State::InUse | State::Held(_) => false,
    };
    let mut asked: Vec<_> = sources.iter_mut().filter(is_asked).collect();
    let taken: Vec<_> = asked
        .iter()
        .map(|source| Taken { held: source.held, read_only: source.read_only })
        .collect();
    for (source, holder) in asked.iter_mut().zip(holders::in_the_way(&taken)) {
        if let Some(holder) = holder {
            source.state = State::Held(holder);
        }
    }
}

/// What is at a path, not opened yet.
struct Found<'a> {
    path: &'a Path,
    /// The real path.
    device: PathBuf,
    is_block: bool,
    place: File,
}

impl<'a> Found<'a> {
    /// Opening the wrong thing may have an effect (a tape rewinds), so that its kind and number are
    /// looked at first.
    fn at(path: &'a Path) -> Result<Self, Error> {
        let place =
            OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path);
        let place = place.map_err(|e| cannot_open(path, e))?;
        let metadata = place.metadata().map_err(|e| Error::system("fstat", path, e))?;
        let is_block = kind_of(path, &metadata)?;
        if is_block && root_disk::is_root(metadata.rdev()) {
            return Err(Error::SourceIsRoot { path: path.to_owned() });
        }
        let device = fs::read_link(same(&place)).map_err(|e| Error::system("readlink", path, e))?;
        Ok(Self { path, device, is_block, place })
    }

    /// Opens it, and claims a block device. One that is in use is opened for a look only. Is it
    /// free?
    fn open(&self, read_only: bool) -> Result<(File, bool), Error> {
        let path = self.path;
        let flags = if self.is_block { libc::O_EXCL | libc::O_DIRECT } else { 0 };
        let open = |write, flags| {
            OpenOptions::new()
                .read(true)
                .write(write)
                .custom_flags(flags | libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(same(&self.place))
        };
        match open(!read_only, flags) {
            Ok(file) => {
                // Only the open itself must not wait.
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
                // Some kernels refuse to open a read-only device for writing, and do not say why.
                let is_read_only = e.raw_os_error() == Some(libc::EROFS)
                    || open(false, 0).is_ok_and(|file| {
                        descriptor::read_only(file.as_fd()).is_ok_and(|ro| ro != 0)
                    });
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

/// The way to what `file` is open on, whatever is at its path by now.
fn same(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Who else has the image open?
fn others(path: &Path, file: &File) -> Result<Others, Error> {
    descriptor::others(file.as_fd()).map_err(|e| Error::system("fcntl", path, e))
}

/// Who reads is in nobody's way who reads. Where a file system does not tell, `/proc` is asked.
fn may_be_taken(others: Others, read_only: bool) -> bool {
    match others {
        Others::None | Others::Unknown => true,
        Others::Readers => read_only,
        Others::Writers => false,
    }
}

fn kind_of(path: &Path, metadata: &fs::Metadata) -> Result<bool, Error> {
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

type Vetted = (String, u64, Kind, Held);

fn block(
    path: &Path,
    file: &File,
    metadata: &fs::Metadata,
    read_only: bool,
) -> Result<Vetted, Error> {
    let failed = |e| Error::system("ioctl", path, e);
    let fd = file.as_fd();
    if !read_only && descriptor::read_only(fd).map_err(failed)? != 0 {
        return Err(Error::SourceReadOnly { path: path.to_owned() });
    }
    let size = descriptor::size(fd).map_err(failed)?;
    if size == 0 {
        return Err(Error::SourceEmpty { path: path.to_owned() });
    }
    let kind = Kind::Block {
        logical_block_size: u32::try_from(descriptor::logical_block_size(fd).map_err(failed)?)
            .unwrap_or(512),
        physical_block_size: descriptor::physical_block_size(fd).map_err(failed)?,
    };
    // Kernels before 5.15 have no such number.
    let sequence = descriptor::disk_sequence(fd).unwrap_or(0);
    let number = metadata.rdev();
    Ok((
        format!("b:{}:{}:{sequence}", major(number), minor(number)),
        size,
        kind,
        Held::Block(number),
    ))
}

fn image(path: &Path, metadata: &fs::Metadata) -> Result<Vetted, Error> {
    let (device, inode, size) = (metadata.dev(), metadata.ino(), metadata.len());
    match size {
        0 => Err(Error::SourceEmpty { path: path.to_owned() }),
        _ if !size.is_multiple_of(512) => {
            Err(Error::SourceUnaligned { path: path.to_owned(), size })
        }
        _ => Ok((format!("f:{device}:{inode}"), size, Kind::File, Held::File(device, inode))),
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
