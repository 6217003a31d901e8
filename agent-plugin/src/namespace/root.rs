//! A container's root directory: [openat2(2)](https://man7.org/linux/man-pages/man2/openat2.2.html)
//! with `RESOLVE_IN_ROOT`.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag},
};

use super::task::check_awaited;
use crate::{
    error::{Error, Result, Unsupported},
    named,
};

/// Tries whether the kernel can resolve a path below a root.
pub(crate) fn try_openat2() -> Result<(), Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    named::openat2(&AT_FDCWD, b".", how).map(drop)
}

/// A container's root directory.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    pub(super) fn new(directory: OwnedFd) -> Root {
        Root { directory }
    }

    /// Opens the directory at `path`, as a process of the container would find it: links are
    /// resolved below this root.
    ///
    /// # Errors
    /// [`Error::ParentMissing`], or a link of `/proc` that leads outside
    /// ([`Unsupported::MagicLink`]).
    pub fn directory(&self, path: &str) -> Result<OwnedFd> {
        let missing = || Error::ParentMissing { path: path.to_owned() }.into();
        self.existing(path)?.ok_or_else(missing)
    }

    /// As [`directory`](Self::directory), but returns `None` where a component of the path does not
    /// exist. A component that is not a directory is an error.
    ///
    /// # Errors
    /// As [`directory`](Self::directory).
    pub fn existing(&self, path: &str) -> Result<Option<OwnedFd>> {
        /// The kernel answers EAGAIN while something is renamed during a walk over `..`: a hostile
        /// container may do so without end.
        const TRIES: usize = 64;

        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut result = Err(Errno::EAGAIN);
        for _ in 0..TRIES {
            // One walk may take long: the links of a path may lead up a hundred thousand times.
            check_awaited()?;
            result = named::openat2(&self.directory, path.as_bytes(), how);
            if !matches!(result, Err(Errno::EAGAIN)) {
                break;
            }
        }
        match result {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::ENOENT) => Ok(None),
            Err(Errno::ENOTDIR) => Err(Error::ParentMissing { path: path.to_owned() }.into()),
            Err(Errno::ELOOP | Errno::EXDEV) => {
                Err(Unsupported::MagicLink { path: path.to_owned() }.into())
            }
            Err(Errno::ENOSYS) => Err(Unsupported::Kernel { call: "openat2", since: "5.6" }.into()),
            Err(other) => Err(Error::system("openat2", &path)(other)),
        }
    }
}
