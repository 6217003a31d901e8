//! Gives all files of a mount to a group, as kubelet does it for a pod's fsGroup:
//! [chown(2)](https://man7.org/linux/man-pages/man2/chown.2.html),
//! [chmod(2)](https://man7.org/linux/man-pages/man2/chmod.2.html).
//!
//! A directory comes after what is in it, and the root last. So a root directory with the group
//! shows that everything has it, and work that was interrupted is continued by a repeat.

use std::{
    fs::{self, ReadDir},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat},
    unistd::{Gid, fchown, fchownat},
};

use super::detached::opened;
use crate::{
    error::{Error, Result},
    fault,
    file_system_error::FileSystemError,
    log,
    named::{self, c_name},
    namespace::check_awaited,
};

/// An image decides how deep its directories are, and each open one costs two descriptors.
const MOST_LEVELS: usize = 200;

/// Permissions that the group gets.
const OF_FILES: u32 = 0o660;
const OF_DIRECTORIES: u32 = 0o2770;

/// Whom files are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owners {
    /// The group, as the guest numbers it.
    pub gid: u32,
    /// Also where the root directory has the group and its permissions already.
    pub always: bool,
}

/// What ends the work early.
pub struct Limit<'a> {
    /// What was changed until then stays.
    pub until: Instant,
    /// Whether the request still goes on.
    pub check: &'a dyn Fn() -> Result<()>,
}

/// A directory whose entries are being changed.
struct Level {
    directory: OwnedFd,
    entries: ReadDir,
}

struct Walk<'a> {
    owners: Owners,
    changed: &'a AtomicU64,
    limit: &'a Limit<'a>,
    /// Files whose owner the mount's user namespace does not have. They cannot be changed.
    unmapped: u64,
}

impl Owners {
    /// Changes what is not as it should be yet, and counts it in `changed`.
    ///
    /// # Errors
    /// The time is over; what was changed stays.
    pub(super) fn give(
        self,
        mount: &OwnedFd,
        changed: &AtomicU64,
        limit: &Limit<'_>,
    ) -> Result<()> {
        let root = opened(mount).map_err(Error::system("openat", &"the root directory"))?;
        let found = fstat(&root).map_err(Error::system("fstat", &"the root directory"))?;
        if !self.always && self.missing(&found).is_none() {
            return Ok(());
        }
        let mut walk = Walk { owners: self, changed, limit, unmapped: 0 };
        walk.run(root)?;
        if walk.unmapped > 0 {
            log::warn(format_args!(
                "{} files keep their group: their owners are not in the container's user namespace",
                walk.unmapped
            ));
        }
        Ok(())
    }

    /// The permissions that a file should have, if it has not both them and the group.
    fn missing(self, found: &FileStat) -> Option<Mode> {
        let added = match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => OF_DIRECTORIES,
            // A link has no permissions.
            SFlag::S_IFLNK => 0,
            _ => OF_FILES,
        };
        let mode = (found.st_mode | added) & 0o7777;
        let is_missing = found.st_gid != self.gid || mode != found.st_mode & 0o7777;
        is_missing.then(|| Mode::from_bits_truncate(mode))
    }
}

impl Walk<'_> {
    fn run(&mut self, root: OwnedFd) -> Result<()> {
        let mut levels = vec![level(root)?];
        while let Some(top) = levels.last_mut() {
            self.check_time()?;
            match top.entries.next() {
                Some(entry) => {
                    let entry = entry.map_err(Error::system("readdir", &"a directory"))?;
                    if let Some(below) = self.visit(&top.directory, entry.file_name().as_bytes())? {
                        if levels.len() >= MOST_LEVELS {
                            let subject = format!("a directory {MOST_LEVELS} levels deep");
                            return Err(Error::system("openat", &subject)(Errno::ENAMETOOLONG));
                        }
                        levels.push(level(below)?);
                    }
                }
                None => {
                    if let Some(Level { directory, .. }) = levels.pop() {
                        self.change_directory(&directory)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check_time(&self) -> Result<()> {
        check_awaited()?;
        (self.limit.check)()?;
        if fault::now() < self.limit.until {
            return Ok(());
        }
        Err(FileSystemError::Owners { changed: self.changed.load(Ordering::Relaxed) }.into())
    }

    /// Changes one entry. A directory is opened and returned instead.
    fn visit(&mut self, directory: &OwnedFd, name: &[u8]) -> Result<Option<OwnedFd>> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        let path = c_name(name).map_err(|errno| Error::system("fstatat", &shown())(errno))?;
        let found = match fstatat(directory, &*path, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::system("fstatat", &shown())(errno)),
        };
        let kind = SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFDIR {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let how = nix::fcntl::OpenHow::new().flags(flags);
            let opened = named::openat2(&directory.as_fd(), name, how);
            return opened.map(Some).map_err(|errno| Error::system("openat2", &shown())(errno));
        }
        let Some(mode) = self.owners.missing(&found) else { return Ok(None) };
        let (gid, nofollow) = (Some(Gid::from_raw(self.owners.gid)), AtFlags::AT_SYMLINK_NOFOLLOW);
        let mut done = fchownat(directory, &*path, None, gid, nofollow);
        if done.is_ok() && kind != SFlag::S_IFLNK {
            done = fchmodat(directory, &*path, mode, FchmodatFlags::FollowSymlink);
        }
        self.note(done).map_err(|errno| Error::system("fchownat", &shown())(errno))?;
        Ok(None)
    }

    fn change_directory(&mut self, directory: &OwnedFd) -> Result<()> {
        let failed = |errno| Error::system("fchown", &"a directory")(errno);
        let Some(mode) = self.owners.missing(&fstat(directory).map_err(failed)?) else {
            return Ok(());
        };
        let gid = Some(Gid::from_raw(self.owners.gid));
        let done = fchown(directory, None, gid).and_then(|()| fchmod(directory, mode));
        self.note(done).map_err(failed)
    }

    fn note(&mut self, done: Result<(), Errno>) -> Result<(), Errno> {
        match done {
            Ok(()) => self.changed.fetch_add(1, Ordering::Relaxed),
            Err(Errno::EOVERFLOW) => {
                self.unmapped += 1;
                0
            }
            Err(errno) => return Err(errno),
        };
        Ok(())
    }
}

fn level(directory: OwnedFd) -> Result<Level> {
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let entries = fs::read_dir(path).map_err(Error::system("readdir", &"a directory"))?;
    Ok(Level { directory, entries })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
        path::Path,
        time::Duration,
    };

    use super::*;

    const GROUP: u32 = 4242;

    fn give(directory: &Path, always: bool, deadline: Instant) -> (Result<()>, u64) {
        let (root, changed) = (fs::File::open(directory).unwrap(), AtomicU64::new(0));
        let owners = Owners { gid: GROUP, always };
        let limit = Limit { until: deadline, check: &|| Ok(()) };
        let result = owners.give(&OwnedFd::from(root), &changed, &limit);
        (result, changed.into_inner())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("a/b")).unwrap();
        for directory in ["", "a", "a/b"] {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(tree.path().join(directory), mode).unwrap();
        }
        fs::write(tree.path().join("a/b/file"), "").unwrap();
        fs::set_permissions(tree.path().join("a/b/file"), fs::Permissions::from_mode(0o4700))
            .unwrap();
        symlink("/etc/passwd", tree.path().join("a/link")).unwrap();
        tree
    }

    #[test]
    fn every_file_gets_the_group_and_its_permissions() {
        let tree = tree();
        let before = fs::metadata("/etc/passwd").unwrap();
        let (result, changed) = give(tree.path(), false, soon());
        result.expect("these tests need root");
        assert_eq!(changed, 5);
        for (path, mode) in [("", 0o2775), ("a", 0o2775), ("a/b", 0o2775), ("a/b/file", 0o4760)] {
            let found = fs::metadata(tree.path().join(path)).unwrap();
            assert_eq!((found.gid(), found.mode() & 0o7777), (GROUP, mode), "{path}");
        }
        assert_eq!(fs::symlink_metadata(tree.path().join("a/link")).unwrap().gid(), GROUP);
        let after = fs::metadata("/etc/passwd").unwrap();
        assert_eq!(
            (before.gid(), before.mode()),
            (after.gid(), after.mode()),
            "no link is followed"
        );
    }

    #[test]
    fn a_root_directory_that_matches_ends_the_work_unless_it_is_always_done() {
        let tree = tree();
        give(tree.path(), false, soon()).0.unwrap();
        fs::write(tree.path().join("a/new"), "").unwrap();
        assert_eq!(give(tree.path(), false, soon()).1, 0);
        assert_eq!(give(tree.path(), true, soon()).1, 1);
        assert_eq!(give(tree.path(), true, soon()).1, 0);
    }

    #[test]
    fn at_the_deadline_it_ends_with_a_count() {
        let tree = tree();
        let (result, changed) = give(tree.path(), false, Instant::now());
        let error = result.unwrap_err();
        assert_eq!((error.owners_changed(), changed), (0, 0));
        assert!(error.to_string().starts_with("the group of 0 files was changed"), "{error}");
    }

    #[test]
    fn directories_may_be_only_so_deep() {
        let tree = tempfile::tempdir().unwrap();
        let path = tree.path().join("d/".repeat(MOST_LEVELS + 1));
        fs::create_dir_all(path).unwrap();
        let error = give(tree.path(), true, soon()).0.unwrap_err().to_string();
        assert!(error.contains("200 levels deep"), "{error}");
    }
}
