//! The directory for a node, found in a hostile tree:
//! [statfs(2)](https://man7.org/linux/man-pages/man2/statfs.2.html).
//!
//! From then on everything goes by the directory's descriptor: no link of the container is
//! followed.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    sys::{
        stat::SFlag,
        statfs::{FsType, TMPFS_MAGIC, fstatfs},
        statvfs::FsFlags,
    },
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{NodePath, Occupant, TEMPORARY, Way};
use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    inode::Inode,
    mount::{self, Mounts},
    namespace::{Root, Target},
};

/// So many directories are made for one node.
const MOST_PARENTS: usize = 16;

const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
const NINE_P_MAGIC: FsType = FsType(0x0102_1997);

/// File systems of the kernel's own that take no file: proc, sysfs, devpts, cgroup2, cgroup,
/// debugfs, tracefs, securityfs, bpf, nsfs.
const KERNELS_OWN: [i64; 10] = [
    0x9fa0,
    0x6265_6572,
    0x1cd1,
    0x6367_7270,
    0x0027_e0eb,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x6e73_6673,
];

/// Where a node shall be.
#[derive(Debug)]
pub struct Place {
    /// The directory, or the nearest one above it that is there.
    directory: OwnedFd,
    /// The names of those below it that are not.
    missing: Vec<String>,
    path: NodePath,
    file_system: FsType,
    flags: FsFlags,
    /// Somebody beside the container can see what is made there.
    is_seen: bool,
    /// What was at the path when it was found.
    seen: Option<Inode>,
}

impl Place {
    /// Resolves the parent of `path` inside `root`. Only looks.
    ///
    /// # Errors
    /// The way there is not safe, or leads through something that is no directory.
    pub fn find(root: &Root, path: &NodePath, mounts: &Mounts) -> Result<Place> {
        let (directory, missing) = nearest(root, path)?;
        let statfs = fstatfs(&directory).map_err(Error::system("fstatfs", path.parent()))?;
        let inode = Inode::of(&directory).map_err(Error::system("statx", path.parent()))?;
        let mut place = Place {
            directory,
            missing,
            path: path.clone(),
            file_system: match statfs.filesystem_type() {
                // A server's word on a directory of its own.
                TMPFS_MAGIC | RAMFS_MAGIC if !mounts.have_in_memory(inode.file_system) => {
                    NINE_P_MAGIC
                }
                known => known,
            },
            flags: statfs.flags(),
            is_seen: mounts.have_in_guest(inode.file_system),
            seen: None,
        };
        place.seen = place.stat(path.name())?;
        Ok(place)
    }

    /// The path.
    pub fn path(&self) -> &NodePath {
        &self.path
    }

    /// Its directory, or the nearest one above it that is there.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// The directory itself is there now.
    pub(super) fn arrive(&mut self, directory: OwnedFd) {
        self.directory = directory;
        self.missing.clear();
    }

    /// The same place, for another thread.
    pub(super) fn try_clone(&self) -> Result<Place> {
        let directory = self
            .directory
            .try_clone()
            .map_err(Error::system("fcntl", self.path.parent().to_owned()))?;
        Ok(Place {
            directory,
            missing: self.missing.clone(),
            path: self.path.clone(),
            file_system: self.file_system,
            flags: self.flags,
            is_seen: self.is_seen,
            seen: self.seen,
        })
    }

    /// The names of the directories below that one which do not exist.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Whether the file system answers at once, whatever the container does. Others are asked by
    /// [`Place::find`] alone, which runs where a wait has an end.
    fn answers(&self) -> bool {
        matches!(self.file_system, TMPFS_MAGIC | RAMFS_MAGIC)
    }

    /// Name of the file system: "tmpfs", or a number where it is an uncommon one.
    pub fn file_system(&self) -> String {
        let name = match self.file_system.0 {
            0x0102_1994 => "tmpfs",
            0x8584_58f6 => "ramfs",
            0x794c_7630 => "overlay",
            0x6573_5546 => "fuse (virtio-fs)",
            0x0102_1997 => "9p",
            0xef53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683e => "btrfs",
            0x6969 => "nfs",
            0x9fa0 => "proc",
            0x6265_6572 => "sysfs",
            0x1cd1 => "devpts",
            other => return format!("file system type {other:#x}"),
        };
        name.to_owned()
    }

    /// Whether nodes there cannot be opened.
    pub fn nodev(&self) -> bool {
        self.flags.contains(FsFlags::ST_NODEV)
    }

    /// Whether nothing can be made there.
    pub fn read_only(&self) -> bool {
        self.flags.contains(FsFlags::ST_RDONLY)
    }

    /// Which way leads there: a node itself only where nobody but the container would see it and it
    /// would open.
    ///
    /// # Errors
    /// Says why none does, and what to use instead.
    pub fn check(&self, target: &Target) -> Result<Way> {
        let path = || self.path.as_str().to_owned();
        if self.read_only() {
            return Err(Error::ReadOnlyFileSystem { path: path() });
        }
        if KERNELS_OWN.contains(&self.file_system.0) {
            return Err(self.takes_no_file().into());
        }
        let is_ours = self.answers() && !self.nodev() && !self.is_seen;
        if is_ours && target.container.user_namespace.is_none() {
            return Ok(Way::Mknod);
        }
        if mount::is_shared(target, &self.directory)? {
            return Err(Unsupported::Shared { path: path() }.into());
        }
        if !mount::can_set_propagation() {
            return Err(Unsupported::Kernel { call: "mount_setattr", since: "5.12" }.into());
        }
        Ok(Way::Bind)
    }

    fn takes_no_file(&self) -> Unsupported {
        Unsupported::FileSystem {
            path: self.path.as_str().to_owned(),
            file_system: self.file_system(),
        }
    }

    /// What is at the path now; on a file system that need not answer, what was there when it was
    /// found.
    ///
    /// # Errors
    /// The kernel cannot tell.
    pub fn occupant(&self) -> Result<Option<Occupant>> {
        Ok(self.look()?.as_ref().map(Occupant::of))
    }

    /// The number of the node there, and by which way it came there.
    ///
    /// # Errors
    /// The kernel cannot tell.
    pub fn find_node(&self) -> Result<Option<(DeviceNumber, Way)>> {
        Ok(self.look()?.filter(|inode| inode.kind == SFlag::S_IFBLK).and_then(|inode| {
            match (inode.is_mounted, self.answers()) {
                (true, _) => Some((inode.device, Way::Bind)),
                (false, true) => Some((inode.device, Way::Mknod)),
                // Nothing of ours: it would have been mounted.
                (false, false) => None,
            }
        }))
    }

    fn look(&self) -> Result<Option<Inode>> {
        if self.answers() { self.stat(self.path.name()) } else { Ok(self.seen) }
    }

    pub(super) fn stat(&self, name: &str) -> Result<Option<Inode>> {
        if !self.missing.is_empty() {
            return Ok(None);
        }
        Inode::at(&self.directory, name).map_err(Error::system("statx", self.path.as_str()))
    }

    /// Removes the temporary node that an earlier attempt for this volume left, if there is one.
    ///
    /// # Errors
    /// Something that is no node has that name.
    pub fn remove_leftover(&self, id: &str) -> Result<bool> {
        if !self.answers() {
            return Ok(false);
        }
        let name = temporary(id);
        match self.stat(&name)?.as_ref().map(Occupant::of) {
            None => Ok(false),
            Some(Occupant::Block(..)) => self.unlink(&name),
            Some(other) => {
                Err(Error::PathTaken { path: self.beside(&name), by: other.to_string() })
            }
        }
    }

    /// The temporary node of this volume, if one is left.
    ///
    /// # Errors
    /// The kernel cannot tell.
    pub fn leftover(&self, id: &str) -> Result<Option<String>> {
        if !self.answers() {
            return Ok(None);
        }
        let name = temporary(id);
        // Anything else under that name is the container's own.
        let is_node = self.stat(&name)?.is_some_and(|inode| inode.kind == SFlag::S_IFBLK);
        Ok(is_node.then(|| self.beside(&name)))
    }

    fn beside(&self, name: &str) -> String {
        format!("{}/{name}", self.path.parent().trim_end_matches('/'))
    }

    pub(super) fn unlink(&self, name: &str) -> Result<bool> {
        match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.explain("unlinkat", errno)),
        }
    }

    /// An error for a call that makes something here.
    pub(super) fn explain(&self, call: &'static str, errno: Errno) -> Error {
        let path = self.path.as_str().to_owned();
        match errno {
            Errno::EROFS => Error::ReadOnlyFileSystem { path },
            Errno::ENOSPC | Errno::EDQUOT => Error::NoSpace { path },
            // The directory was removed after it was found.
            Errno::ENOENT => Error::ParentMissing { path: self.path.parent().to_owned() },
            // It was made, and somebody on the other side of the file system put a link in its
            // place.
            Errno::ELOOP => Error::PathTaken { path, by: "symbolic link".to_owned() },
            Errno::EEXIST => {
                let by = self
                    .occupant()
                    .ok()
                    .flatten()
                    .map_or("file".to_owned(), |found| found.to_string());
                Error::PathTaken { path, by }
            }
            Errno::EACCES | Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS => {
                self.takes_no_file().into()
            }
            other => Error::system(call, path)(other),
        }
    }
}

/// The name of a volume's node before it is published.
pub(super) fn temporary(id: &str) -> String {
    format!("{TEMPORARY}{id}")
}

/// The directory of `path`, or the nearest one above it that exists, and the names between the two.
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
    Err(Error::ParentMissing { path: path.parent().to_owned() })
}
