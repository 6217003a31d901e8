//! Calls on a file by its name, each compiled once. The functions of `nix` that take a name copy it
//! onto the stack, and the copying is compiled once more for each type of name and descriptor.

use std::{
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{self, AT_FDCWD, OFlag, OpenHow},
    sys::stat::Mode,
    unistd::{self, UnlinkatFlags},
};

/// A name for the kernel, which none with a NUL byte is.
#[inline(never)]
pub(crate) fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

/// Opens `path`, as the calling thread finds it.
pub(crate) fn open(path: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    opened(AT_FDCWD, path, flags)
}

/// Opens the file `name` in `directory`. One that is made has no permissions.
pub(crate) fn openat(directory: &impl AsFd, name: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    opened(directory.as_fd(), name, flags)
}

#[inline(never)]
fn opened(directory: BorrowedFd<'_>, name: &str, flags: OFlag) -> Result<OwnedFd, Errno> {
    fcntl::openat(directory, &*c_name(name.as_bytes())?, flags, Mode::empty())
}

/// Opens the file at `path` below `directory`.
pub(crate) fn openat2(directory: &impl AsFd, path: &[u8], how: OpenHow) -> Result<OwnedFd, Errno> {
    resolved(directory.as_fd(), path, how)
}

#[inline(never)]
fn resolved(directory: BorrowedFd<'_>, path: &[u8], how: OpenHow) -> Result<OwnedFd, Errno> {
    fcntl::openat2(directory, &*c_name(path)?, how)
}

/// Removes the file `name` in `directory`.
pub(crate) fn unlinkat(directory: &impl AsFd, name: &str) -> Result<(), Errno> {
    removed(directory.as_fd(), name, UnlinkatFlags::NoRemoveDir)
}

/// Removes the directory `name` in `directory`.
pub(crate) fn rmdirat(directory: &impl AsFd, name: &str) -> Result<(), Errno> {
    removed(directory.as_fd(), name, UnlinkatFlags::RemoveDir)
}

#[inline(never)]
fn removed(directory: BorrowedFd<'_>, name: &str, kind: UnlinkatFlags) -> Result<(), Errno> {
    unistd::unlinkat(directory, &*c_name(name.as_bytes())?, kind)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn files_are_made_opened_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let open_directory = File::open(directory.path()).unwrap();
        let new = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        openat(&open_directory, "file", new).unwrap();
        assert_eq!(openat(&open_directory, "file", new).unwrap_err(), Errno::EEXIST);
        std::fs::create_dir(directory.path().join("below")).unwrap();
        assert_eq!(rmdirat(&open_directory, "file").unwrap_err(), Errno::ENOTDIR);
        unlinkat(&open_directory, "file").unwrap();
        rmdirat(&open_directory, "below").unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_with_a_nul_byte_is_invalid() {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags);
        assert_eq!(open("/\0", flags).unwrap_err(), Errno::EINVAL);
        assert_eq!(openat2(&AT_FDCWD, b"/\0", how).unwrap_err(), Errno::EINVAL);
        assert_eq!(unlinkat(&AT_FDCWD, "a\0").unwrap_err(), Errno::EINVAL);
    }
}
