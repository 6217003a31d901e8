//! Finding a socket or a file only where nobody but root could have put it.
//!
//! A descriptor of root's is handed to whoever listens on a socket, so the path to it is followed
//! component by component, each opened relative to the one before
//! ([`openat(2)`](https://man7.org/linux/man-pages/man2/openat.2.html) with `O_PATH` and
//! `O_NOFOLLOW`) and checked by its descriptor. What is used in the end is what was checked: a
//! socket is connected, and a file opened, by the descriptor that the last step led to.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstat},
    sys::statfs::{FUSE_SUPER_MAGIC, fstatfs},
};
use tokio::net::UnixStream;

/// The directory with each user's run directory, which is named by the user ID.
const USER_RUN_DIRS: &str = "/run/user";
/// As in the kernel
/// ([`path_resolution(7)`](https://man7.org/linux/man-pages/man7/path_resolution.7.html)).
const MAX_LINKS: u32 = 40;
/// Write permission of the group or of all others.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Who is trusted: root, and the user that runs the VMM, if one is named, in its own run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    vmm_user: Option<u32>,
    user_run_dirs: PathBuf,
}

/// What is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// A directory or a file that somebody else could have made or changed.
    #[error("{path:?} is not trusted: it {why} (owner {owner}, mode {mode:04o})")]
    Path {
        /// The directory or file, without links.
        path: PathBuf,
        /// Why it is not trusted, as the rest of a sentence.
        why: &'static str,
        /// Its user.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A process that should not listen there.
    #[error("process {pid} of user {user} listens on {path:?}, not {expected}")]
    Server {
        /// The socket.
        path: PathBuf,
        /// The process that listens.
        pid: i32,
        /// Its user.
        user: u32,
        /// Who should listen.
        expected: String,
    },
}

/// Why a path did not lead to anything.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// It does not exist, or cannot be opened.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It leads through what is not trusted.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
}

impl From<nix::errno::Errno> for PathError {
    fn from(errno: nix::errno::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// What a path led to.
#[derive(Debug)]
pub struct Located {
    file: OwnedFd,
    status: FileStat,
    path: PathBuf,
    trust: Trust,
}

impl Default for Trust {
    fn default() -> Self {
        Self::root()
    }
}

impl Trust {
    /// Trusts root alone.
    pub fn root() -> Self {
        Self { vmm_user: None, user_run_dirs: USER_RUN_DIRS.into() }
    }

    /// Trusts root, and the user `vmm_user`, if that is given, below `/run/user/<vmm_user>`.
    pub fn with_vmm_user(vmm_user: Option<u32>) -> Self {
        Self { vmm_user, ..Self::root() }
    }

    /// The run directory of a user, `/run/user/<user>`: a rootless VMM has its files there.
    pub fn user_run_dir(user: u32) -> PathBuf {
        Path::new(USER_RUN_DIRS).join(user.to_string())
    }

    /// Whether `path` is below the run directory of a user.
    pub fn is_user_run_dir(path: &Path) -> bool {
        path.starts_with(USER_RUN_DIRS)
    }

    /// The user that the VMM must run as, if one is named.
    pub fn vmm_user(&self) -> Option<u32> {
        self.vmm_user
    }

    /// Follows `path` to its end. A relative path begins in the working directory.
    ///
    /// # Errors
    /// A directory or link on the way, or what it leads to, does not exist, or is not trusted:
    /// another user owns it, or users other than its owner can write to it. In a directory with the
    /// sticky bit, such as `/tmp`, only what root owns counts.
    pub fn locate(&self, path: &Path) -> Result<Located, PathError> {
        let path =
            if path.is_absolute() { path.to_owned() } else { std::env::current_dir()?.join(path) };
        let mut rest = components(&path);
        let mut here = self.at(open(AT_FDCWD, OsStr::new("/"))?, PathBuf::from("/"))?;
        here.check_directory()?;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                let mut parent = here.path.clone();
                parent.pop();
                here = self.at(open(here.file.as_fd(), &name)?, parent)?;
                here.check_directory()?;
                continue;
            }
            let entry = self.at(open(here.file.as_fd(), &name)?, here.path.join(&name))?;
            entry.check_entry_of(&here)?;
            match entry.kind() {
                SFlag::S_IFLNK => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP).into());
                    }
                    let target = PathBuf::from(readlinkat(entry.file.as_fd(), "")?);
                    if target.is_absolute() {
                        here = self.at(open(AT_FDCWD, OsStr::new("/"))?, PathBuf::from("/"))?;
                    }
                    rest.extend(components(&target));
                }
                SFlag::S_IFDIR => {
                    entry.check_directory()?;
                    here = entry;
                }
                _ if rest.is_empty() => return Ok(entry),
                _ => return Err(io::Error::from_raw_os_error(libc::ENOTDIR).into()),
            }
        }
        Ok(here)
    }

    fn at(&self, file: OwnedFd, path: PathBuf) -> Result<Located, PathError> {
        let status = fstat(&file)?;
        Ok(Located { file, status, path, trust: self.clone() })
    }
}

/// The components of a path, the last one first.
fn components(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

fn open(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, io::Error> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?)
}

impl Located {
    /// Where it is, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Connects to the socket.
    ///
    /// # Errors
    /// As [`connect(2)`](https://man7.org/linux/man-pages/man2/connect.2.html); `EAGAIN` if the
    /// listener's queue is full.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.by_descriptor()).await
    }

    /// Opens the regular file for reading.
    ///
    /// # Errors
    /// It is no regular file, cannot be opened, or others than root can write to it.
    pub fn open_file(&self) -> Result<File, PathError> {
        if self.kind() != SFlag::S_IFREG {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        self.check_owner()?;
        self.check_mode(0)?;
        Ok(File::open(self.by_descriptor())?)
    }

    fn by_descriptor(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.file.as_raw_fd().to_string())
    }

    fn kind(&self) -> SFlag {
        SFlag::from_bits_truncate(self.status.st_mode & SFlag::S_IFMT.bits())
    }

    fn check_directory(&self) -> Result<(), Untrusted> {
        self.check_owner()?;
        self.check_mode(STICKY)
    }

    /// In a directory that others can write to, what another user owns is that user's.
    fn check_entry_of(&self, directory: &Self) -> Result<(), PathError> {
        if directory.status.st_mode & OTHERS_WRITE != 0 {
            self.check_owner()?;
        }
        // A FUSE server names any owner, and with `user_allow_other` a user may mount one over each
        // directory of its own.
        if self.status.st_dev != directory.status.st_dev
            && self.kind() != SFlag::S_IFLNK
            && fstatfs(&self.file)?.filesystem_type() == FUSE_SUPER_MAGIC
        {
            return Err(self.untrusted("is a FUSE file system").into());
        }
        Ok(())
    }

    fn check_owner(&self) -> Result<(), Untrusted> {
        let owner = self.status.st_uid;
        if owner == 0 {
            return Ok(());
        }
        if self.trust.vmm_user != Some(owner) {
            return Err(self.untrusted("belongs to another user than root"));
        }
        let theirs = self.trust.user_run_dirs.join(owner.to_string());
        match self.path.starts_with(theirs) {
            true => Ok(()),
            false => {
                Err(self.untrusted("belongs to the VMM's user, and is not below /run/user/UID"))
            }
        }
    }

    /// Checks that only the owner can write, or that one of the bits `unless` is set.
    fn check_mode(&self, unless: u32) -> Result<(), Untrusted> {
        let mode = self.status.st_mode;
        match mode & OTHERS_WRITE != 0 && mode & unless == 0 {
            true => Err(self.untrusted("can be written by others than its owner")),
            false => Ok(()),
        }
    }

    fn untrusted(&self, why: &'static str) -> Untrusted {
        let (owner, mode) = (self.status.st_uid, self.status.st_mode & 0o7777);
        Untrusted::Path { path: self.path.clone(), why, owner, mode }
    }
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
