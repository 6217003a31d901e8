//! The volume on the host: opened once ([`open(2)`](https://man7.org/linux/man-pages/man2/open.2.html)), and everything about it
//! asked through that one descriptor, which is then QEMU's. `O_EXCL` on a block device is a claim that lasts as long as any copy
//! of the descriptor does: a later mount, mkfs or second plug is refused by the kernel.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
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
    holders::{self, Held, Holder},
};

/// A vetted volume.
#[derive(Debug)]
pub struct Source {
    /// As the user named it.
    pub given: PathBuf,
    /// The real path.
    pub device: PathBuf,
    /// What tells it from every other volume of this host: `b:major:minor:diskseq` or `f:dev:inode`.
    pub identity: String,
    /// In bytes.
    pub size: u64,
    /// How it is opened, and how QEMU must use it.
    pub kind: Kind,
    held: Held,
    claim: Option<OwnedFd>,
    /// Nobody else has it open at all, as far as that can be known.
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

impl Source {
    /// Opens and vets the volume at `path`. A volume that somebody else has in use is described all the same, without a
    /// [`claim`](Self::claim): it may be in use by the very VM that it is meant for.
    ///
    /// # Errors
    /// It is not there, or not fit.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, Error> {
        let real = fs::canonicalize(path).map_err(|e| cannot_open(path, e))?;
        let before = fs::metadata(&real).map_err(|e| cannot_open(path, e))?;
        // Opening the wrong thing may have an effect (a tape rewinds), so that its kind is looked at first.
        let is_block = kind_of(path, &before)?;
        if is_block && holders::is_root(before.rdev()) {
            return Err(Error::SourceIsRoot { path: path.to_owned() });
        }
        let (file, claimed) = open(path, &real, is_block, read_only)?;
        let now = file.metadata().map_err(|e| Error::system("fstat", path, e))?;
        if kind_of(path, &now)? != is_block || (is_block && now.rdev() != before.rdev()) {
            return Err(Error::SourceHeld {
                path: path.to_owned(),
                holder: "somebody who replaces it just now".into(),
            });
        }
        let device = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))
            .map_err(|e| Error::system("readlink", path, e))?;
        let vetted = if is_block { block(path, &file, &now, read_only) } else { image(path, &now) };
        let (identity, size, kind, held) = vetted?;
        let (free, sole) = match held {
            // The claim keeps out every other claim, and QEMU has no volume without one.
            Held::Block(_) => (holders::loop_device(held).is_none(), true),
            Held::File(..) => {
                let others = descriptor::others(file.as_fd());
                match others.map_err(|e| Error::system("fcntl", path, e))? {
                    Others::None => (true, true),
                    Others::Readers => (read_only, false),
                    Others::Writers => (false, false),
                    // It is believed that there is nobody.
                    Others::Unknown => (true, false),
                }
            }
        };
        let claim = (claimed && free).then(|| OwnedFd::from(file));
        let sole = sole && claim.is_some();
        Ok(Self { given: path.to_owned(), device, identity, size, kind, held, claim, sole })
    }

    /// The descriptor for QEMU.
    ///
    /// # Errors
    /// Somebody else has the volume in use; says who.
    pub fn claim(&self) -> Result<&OwnedFd, Error> {
        self.claim.as_ref().ok_or_else(|| {
            let path = self.given.clone();
            match holders::holder(self.held) {
                Holder::Mount(mount_point) => Error::SourceMounted { path, mount_point },
                holder => Error::SourceHeld { path, holder: holder.to_string() },
            }
        })
    }

    /// It is certain that no QEMU has anything of this volume, not even what a killed run left: that would have it open.
    pub fn is_sole(&self) -> bool {
        self.sole
    }

    /// Nobody else has it in use.
    pub fn is_claimed(&self) -> bool {
        self.claim.is_some()
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

/// The volume, and whether it is claimed. A block device that is in use is opened for a look only.
fn open(path: &Path, real: &Path, is_block: bool, read_only: bool) -> Result<(File, bool), Error> {
    let flags = if is_block { libc::O_EXCL | libc::O_DIRECT } else { 0 };
    let open = |write, flags| {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(flags | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(real)
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
            if !read_only && matches!(e.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM)) =>
        {
            // Some kernels refuse to open a read-only device for writing, and do not say why.
            let is_read_only = e.raw_os_error() == Some(libc::EROFS)
                || open(false, 0)
                    .is_ok_and(|file| descriptor::read_only(file.as_fd()).is_ok_and(|ro| ro != 0));
            Err(if is_read_only {
                Error::SourceReadOnly { path: path.to_owned() }
            } else {
                cannot_open(path, e)
            })
        }
        Err(e) => Err(cannot_open(path, e)),
    }
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

fn block(path: &Path, file: &File, metadata: &fs::Metadata, read_only: bool) -> Result<Vetted, Error> {
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
        logical_block_size: u32::try_from(descriptor::logical_block_size(fd).map_err(failed)?).unwrap_or(512),
        physical_block_size: descriptor::physical_block_size(fd).map_err(failed)?,
    };
    // Kernels before 5.15 have no such number.
    let sequence = descriptor::disk_sequence(fd).unwrap_or(0);
    let number = metadata.rdev();
    Ok((format!("b:{}:{}:{sequence}", major(number), minor(number)), size, kind, Held::Block(number)))
}

fn image(path: &Path, metadata: &fs::Metadata) -> Result<Vetted, Error> {
    let (device, inode, size) = (metadata.dev(), metadata.ino(), metadata.len());
    match size {
        0 => Err(Error::SourceEmpty { path: path.to_owned() }),
        _ if !size.is_multiple_of(512) => Err(Error::SourceUnaligned { path: path.to_owned(), size }),
        _ => Ok((format!("f:{device}:{inode}"), size, Kind::File, Held::File(device, inode))),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn file_of(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn an_image_is_claimed_by_a_lease_probe() {
        let path = file_of(1 << 20).into_temp_path();
        let source = Source::open(&path, false).unwrap();
        assert_eq!((source.size, source.kind), (1 << 20, Kind::File));
        assert!(source.claim().is_ok() && source.is_sole());
        let second = Source::open(&path, false).unwrap();
        assert_eq!(second.identity, source.identity);
        assert!(matches!(second.claim(), Err(Error::SourceHeld { .. })) && !second.is_sole());
    }

    #[test]
    fn an_image_that_another_reads_may_be_read_and_is_not_ours_alone() {
        let path = file_of(1 << 20).into_temp_path();
        let first = Source::open(&path, true).unwrap();
        let second = Source::open(&path, true).unwrap();
        assert!(first.is_sole() && second.claim().is_ok() && !second.is_sole());
    }

    #[test]
    fn a_link_is_followed_and_the_real_path_reported() {
        let path = file_of(512).into_temp_path();
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("by-id");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let source = Source::open(&link, true).unwrap();
        assert_eq!((source.given.as_path(), source.device.as_path()), (link.as_path(), &*path));
    }

    #[rstest]
    #[case("/nonexistent", 3)]
    #[case("/dev/null", 6)]
    #[case("/tmp", 6)]
    #[case("/dev/null/x", 3)]
    fn unfit_paths_are_refused(#[case] path: &str, #[case] exit_code: u8) {
        assert_eq!(Source::open(Path::new(path), false).unwrap_err().class().exit_code, exit_code);
    }

    #[test]
    fn a_dangling_link_is_not_found() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("l");
        std::os::unix::fs::symlink("/nonexistent", &link).unwrap();
        assert!(matches!(Source::open(&link, false), Err(Error::SourceNotFound { .. })));
    }

    #[test]
    fn odd_sizes_are_refused() {
        let empty = file_of(0);
        assert!(matches!(Source::open(empty.path(), false), Err(Error::SourceEmpty { .. })));
        let odd = file_of(513);
        assert!(matches!(Source::open(odd.path(), false), Err(Error::SourceUnaligned { size: 513, .. })));
    }
}
