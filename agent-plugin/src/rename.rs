//! Renames by descriptor: [renameat2(2)](https://man7.org/linux/man-pages/man2/rename.2.html).

use std::os::fd::{AsFd, AsRawFd as _};

use nix::errno::Errno;

use crate::named::c_name;

/// Renames `from` to `to`, both in `directory`. `EEXIST`: there is a file at `to`.
///
/// By its number: `nix` wraps the call for glibc only, and musl has a function for it since 1.2.6.
#[expect(unsafe_code, reason = "renameat2(2) has no safe wrapper for musl in libc or nix")]
pub(crate) fn rename_in(directory: &impl AsFd, from: &str, to: &str) -> Result<(), Errno> {
    let (from, to) = (c_name(from.as_bytes())?, c_name(to.as_bytes())?);
    let fd = directory.as_fd().as_raw_fd();
    let flags = libc::RENAME_NOREPLACE;
    // SAFETY: both names end with a NUL byte and outlive the call, the rest are numbers.
    let result =
        unsafe { libc::syscall(libc::SYS_renameat2, fd, from.as_ptr(), fd, to.as_ptr(), flags) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_file_gets_its_new_name_and_replaces_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let open = File::open(directory.path()).unwrap();
        fs::write(path("a"), "a").unwrap();
        rename_in(&open, "a", "b").unwrap();
        assert!(!path("a").exists() && path("b").exists());
        fs::write(path("a"), "other").unwrap();
        assert_eq!(rename_in(&open, "a", "b"), Err(Errno::EEXIST));
        assert_eq!(fs::read(path("b")).unwrap(), b"a");
        assert_eq!(rename_in(&open, "none", "c"), Err(Errno::ENOENT));
        assert_eq!(rename_in(&open, "a", "c\0d"), Err(Errno::EINVAL));
    }
}
