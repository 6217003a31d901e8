//! The directory for a node, in a file system that is not trusted
//! ([statfs(2)](https://man7.org/linux/man-pages/man2/statfs.2.html)).
//!
//! Once it is found, every call uses the directory's descriptor: no link of the container is
//! followed.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    sys::{stat::SFlag, statfs::fstatfs, statvfs::FsFlags},
};

use super::{
    device::NodeKind,
    existing::Existing,
    file_system::FileSystem,
    path::{NodePath, TEMPORARY},
    watch,
};
use crate::{
    block::DeviceNumber,
    error::{BoxedError, Error, Result, Unsupported},
    inode::Inode,
    mount::{self, Mounts},
    named,
    namespace::{Root, Target},
    text::displayed,
};

/// At most so many directories are made for one node.
const MOST_PARENTS: usize = 16;

/// Where a node is, or is to be.
#[derive(Debug)]
pub struct Location {
    /// The directory, or the nearest one above it that exists.
    directory: OwnedFd,
    /// The names of the directories below it that do not exist.
    missing: Vec<String>,
    path: NodePath,
    file_system: FileSystem,
    flags: FsFlags,
    /// Whether the file system is mounted in the guest, too, so that files on it are visible
    /// outside of the container.
    is_in_guest: bool,
    /// Whether a mount there would propagate to others.
    is_shared: bool,
    /// The inode at the path when the location was found.
    found: Option<Inode>,
}

impl Location {
    /// Resolves the parent of `path` inside `root`. Changes nothing.
    ///
    /// # Errors
    /// The path is not safe to follow, or leads through something that is not a directory.
    pub fn find(root: &Root, path: &NodePath, mounts: &Mounts) -> Result<Location> {
        let (directory, missing) = nearest(root, path)?;
        let statfs = fstatfs(&directory).map_err(Error::system("fstatfs", &path.parent()))?;
        let inode = Inode::of(&directory).map_err(Error::system("statx", &path.parent()))?;
        let around = mounts.around(&inode)?;
        let mut location = Location {
            directory,
            missing,
            path: path.clone(),
            file_system: FileSystem::new(statfs.filesystem_type(), around.is_in_memory),
            flags: statfs.flags(),
            is_in_guest: around.is_in_guest,
            is_shared: around.is_shared,
            found: None,
        };
        location.found = location.stat(path.name())?;
        Ok(location)
    }

    /// Whether `path` is in the same directory, which exists.
    pub(crate) fn is_beside(&self, path: &NodePath) -> bool {
        self.missing.is_empty() && self.path.parent() == path.parent()
    }

    /// Looks at another path of the same directory, which is not resolved again.
    pub(crate) fn turn_to(&mut self, path: &NodePath) -> Result<()> {
        debug_assert!(self.is_beside(path), "of another directory");
        self.found = self.stat(path.name())?;
        self.path = path.clone();
        Ok(())
    }

    /// What existed at the path when it was found.
    pub(crate) fn found(&self) -> Option<Existing> {
        self.found.as_ref().map(Existing::of)
    }

    /// The path.
    pub fn path(&self) -> &NodePath {
        &self.path
    }

    /// Its directory, or the nearest one above it that exists.
    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Sets the directory itself, after the missing ones were made.
    pub(super) fn set_directory(&mut self, directory: OwnedFd) {
        self.directory = directory;
        self.missing.clear();
    }

    /// Duplicates the descriptor, for another thread.
    pub(crate) fn try_clone(&self) -> Result<Location> {
        let directory =
            self.directory.try_clone().map_err(Error::system("fcntl", &self.path.parent()))?;
        Ok(Location {
            directory,
            missing: self.missing.clone(),
            path: self.path.clone(),
            file_system: self.file_system,
            flags: self.flags,
            is_in_guest: self.is_in_guest,
            is_shared: self.is_shared,
            found: self.found,
        })
    }

    /// The names of the directories that do not exist, outermost first.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Whether the file system answers immediately. Other file systems are asked by
    /// [`Location::find`] alone, which runs with a deadline.
    fn is_in_memory(&self) -> bool {
        self.file_system.is_in_memory()
    }

    /// Name of the file system: "tmpfs", or the number of an uncommon one.
    pub fn file_system(&self) -> String {
        displayed(&self.file_system)
    }

    /// Whether nodes there cannot be opened (`nodev`).
    pub fn nodev(&self) -> bool {
        self.flags.contains(FsFlags::ST_NODEV)
    }

    /// Whether the file system is read-only.
    pub fn read_only(&self) -> bool {
        self.flags.contains(FsFlags::ST_RDONLY)
    }

    /// Decides on the kind of node: a mknod node only where it is visible to the container alone
    /// and can be opened, and where a device filter protects (`guarded`) its number. Without a
    /// filter a hard link would lead to whichever disk gets the number next; no link leads across
    /// mounts.
    ///
    /// # Errors
    /// Why no node is possible, and what to use instead.
    pub fn check(&self, target: &Target, guarded: bool) -> Result<NodeKind> {
        let path = || self.path.as_str().to_owned();
        if self.read_only() {
            return Err(Error::ReadOnlyFileSystem { path: path() }.into());
        }
        if self.file_system.is_the_kernels() {
            return Err(self.takes_no_file().into());
        }
        let is_private = self.is_in_memory() && !self.nodev() && !self.is_in_guest;
        let fits_mknod = is_private && target.container.user_namespace.is_none();
        if fits_mknod && guarded {
            return Ok(NodeKind::Mknod);
        }
        if !guarded && watch::kept(&target.id) >= watch::MOST_KEPT {
            return Err(Unsupported::Referenced { container: displayed(&target.id) }.into());
        }
        if !mount::can_set_propagation() {
            // Without a filter its number is then kept after the removal, whatever refers to it.
            if fits_mknod {
                return Ok(NodeKind::Mknod);
            }
            return Err(Unsupported::Kernel { call: "mount_setattr", since: "5.12" }.into());
        }
        if self.is_shared {
            return Err(Unsupported::Shared { path: path() }.into());
        }
        Ok(NodeKind::Bind)
    }

    /// Whether a file can be made on the file system at all.
    pub(crate) fn check_takes_files(&self) -> Result<()> {
        if self.file_system.is_the_kernels() {
            return Err(self.takes_no_file().into());
        }
        Ok(())
    }

    /// Whether a mount there would propagate to others.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    fn takes_no_file(&self) -> Unsupported {
        Unsupported::FileSystem {
            path: self.path.as_str().to_owned(),
            file_system: self.file_system(),
        }
    }

    /// What exists at the path now; on a file system that may not answer, what existed when the
    /// location was found.
    ///
    /// # Errors
    /// The kernel cannot read the inode.
    pub fn existing(&self) -> Result<Option<Existing>> {
        Ok(self.inode()?.as_ref().map(Existing::of))
    }

    /// The device number and the kind of the node there.
    ///
    /// # Errors
    /// The kernel cannot read the inode.
    pub fn find_node(&self) -> Result<Option<(DeviceNumber, NodeKind)>> {
        Ok(self.inode()?.filter(|inode| inode.kind == SFlag::S_IFBLK).and_then(|inode| {
            match (inode.is_mounted, self.is_in_memory()) {
                (true, _) => Some((inode.device, NodeKind::Bind)),
                (false, true) => Some((inode.device, NodeKind::Mknod)),
                // Not ours: our node would be mounted there.
                (false, false) => None,
            }
        }))
    }

    /// What is at the path now; on a file system that may not answer, what was there when the
    /// location was found.
    pub(crate) fn inode(&self) -> Result<Option<Inode>> {
        if self.is_in_memory() { self.stat(self.path.name()) } else { Ok(self.found) }
    }

    pub(super) fn stat(&self, name: &str) -> Result<Option<Inode>> {
        if !self.missing.is_empty() {
            return Ok(None);
        }
        Inode::at(&self.directory, name).map_err(Error::system("statx", &self.path.as_str()))
    }

    /// Removes the temporary node that an earlier attempt for this volume left, if there is one.
    ///
    /// # Errors
    /// Something that is not a node has that name.
    pub fn remove_leftover(&self, id: &str) -> Result<bool> {
        if !self.is_in_memory() {
            return Ok(false);
        }
        let name = temporary(id);
        match self.stat(&name)?.as_ref().map(Existing::of) {
            None => Ok(false),
            Some(Existing::Block(..)) => self.unlink(&name),
            Some(other) => {
                Err(Error::PathTaken { path: self.beside(&name), by: displayed(&other) }.into())
            }
        }
    }

    /// The path of the temporary node of this volume, if one is left.
    ///
    /// # Errors
    /// The kernel cannot read the inode.
    pub fn leftover(&self, id: &str) -> Result<Option<String>> {
        if !self.is_in_memory() {
            return Ok(None);
        }
        let name = temporary(id);
        // Anything else under that name belongs to the container.
        let is_node = self.stat(&name)?.is_some_and(|inode| inode.kind == SFlag::S_IFBLK);
        Ok(is_node.then(|| self.beside(&name)))
    }

    /// The path of another name in the same directory.
    fn beside(&self, name: &str) -> String {
        format!("{}/{name}", self.path.parent().trim_end_matches('/'))
    }

    pub(super) fn unlink(&self, name: &str) -> Result<bool> {
        match named::unlinkat(&self.directory, name) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.explain("unlinkat", errno)),
        }
    }

    /// The error where the node was moved or replaced by the container during a change.
    pub(crate) fn moved(&self) -> BoxedError {
        BoxedError::from(Error::NodeMoved { path: self.path.as_str().to_owned() })
    }

    /// The error of a call that makes something here.
    pub(crate) fn explain(&self, call: &'static str, errno: Errno) -> BoxedError {
        let path = self.path.as_str().to_owned();
        match errno {
            Errno::EROFS => BoxedError::from(Error::ReadOnlyFileSystem { path }),
            Errno::ENOSPC | Errno::EDQUOT => BoxedError::from(Error::NoSpace { path }),
            // The directory was removed after it was found.
            Errno::ENOENT => {
                BoxedError::from(Error::ParentMissing { path: self.path.parent().to_owned() })
            }
            // Our file was made, and another user of the file system replaced it by a link.
            Errno::ELOOP => {
                BoxedError::from(Error::PathTaken { path, by: "symbolic link".to_owned() })
            }
            Errno::EEXIST => {
                let by = self
                    .existing()
                    .ok()
                    .flatten()
                    .map_or("file".to_owned(), |found| displayed(&found));
                BoxedError::from(Error::PathTaken { path, by })
            }
            Errno::EACCES | Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS => {
                self.takes_no_file().into()
            }
            other => Error::system(call, &path)(other),
        }
    }
}

/// The name of a volume's node before it is published.
pub(super) fn temporary(id: &str) -> String {
    format!("{TEMPORARY}{id}")
}

/// Opens the directory of `path`, or the nearest one above it that exists. Returns the names
/// between the two.
fn nearest(root: &Root, path: &NodePath) -> Result<(OwnedFd, Vec<String>)> {
    let mut missing = Vec::new();
    let mut parent = path.parent();
    while missing.len() <= MOST_PARENTS {
        if let Some(directory) = root.existing(parent)? {
            missing.reverse();
            return Ok((directory, missing));
        }
        let Some((above, name)) = parent.rsplit_once('/').filter(|(_, name)| !name.is_empty())
        else {
            break;
        };
        missing.push(name.to_owned());
        parent = if above.is_empty() { "/" } else { above };
    }
    Err(Error::ParentMissing { path: path.parent().to_owned() }.into())
}
