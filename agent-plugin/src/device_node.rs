//! A device node in a container: made under a temporary name, proved by opening it, published by a rename
//! ([mknod(2)](https://man7.org/linux/man-pages/man2/mknod.2.html), [rename(2)](https://man7.org/linux/man-pages/man2/rename.2.html)).
//!
//! Everything goes by the descriptor of the parent directory, which is on a tmpfs or ramfs of the guest: no link of the container
//! is followed, and no file system of its own making is asked.

use std::{
    fmt,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat2},
    sys::{
        stat::{FileStat, Mode, SFlag, fstat, fstatat, mknodat},
        statfs::{FsType, TMPFS_MAGIC, fstatfs},
        statvfs::FsFlags,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat},
};

use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    fault,
    namespace::Root,
};

const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Beginning of the names that a node has before it is published; no request may ask for one.
pub const TEMPORARY: &str = ".ecrblk-";

/// Absolute path of a node in a container: without `.`, `..` and empty components, and not one of our temporary names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodePath(String);

impl NodePath {
    /// # Errors
    /// The rule that the path breaks.
    pub fn new(path: &str) -> Result<NodePath, &'static str> {
        let Some(relative) = path.strip_prefix('/') else { return Err("must be absolute") };
        if path.len() > 4096 || relative.split('/').any(|part| part.len() > 255) {
            return Err("must have at most 4096 bytes, and 255 between two slashes");
        }
        if path.contains('\0') {
            return Err("must not have a NUL byte");
        }
        if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("must not have an empty component, `.` or `..`");
        }
        let path = NodePath(path.to_owned());
        if path.name().starts_with(TEMPORARY) {
            return Err("must not be a name that this plugin uses itself");
        }
        Ok(path)
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn split(&self) -> (&str, &str) {
        // The constructor saw to the leading slash.
        self.0.rsplit_once('/').unwrap_or(("", &self.0))
    }

    /// Without the last component: "/dev".
    pub fn parent(&self) -> &str {
        match self.split().0 {
            "" => "/",
            parent => parent,
        }
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.split().1
    }
}

/// What a node shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeOptions {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl fmt::Display for NodeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "owner {}:{} and mode {:04o}", self.uid, self.gid, self.mode)
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// A block device.
    Block(DeviceNumber, NodeOptions),
    /// Anything else, by its name.
    Other(&'static str),
}

impl Occupant {
    fn of(stat: &FileStat) -> Occupant {
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFBLK => {
                let options = NodeOptions { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode & 0o7777 };
                Occupant::Block(DeviceNumber::from_raw(stat.st_rdev), options)
            }
            SFlag::S_IFDIR => Occupant::Other("directory"),
            SFlag::S_IFLNK => Occupant::Other("symbolic link"),
            SFlag::S_IFCHR => Occupant::Other("character device"),
            SFlag::S_IFIFO => Occupant::Other("named pipe"),
            SFlag::S_IFSOCK => Occupant::Other("socket"),
            _ => Occupant::Other("file"),
        }
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Occupant::Block(number, _) => write!(f, "block device {number}"),
            Occupant::Other(name) => f.write_str(name),
        }
    }
}

/// The directory for a node, found.
#[derive(Debug)]
pub struct Place {
    parent: OwnedFd,
    path: NodePath,
    file_system: FsType,
    flags: FsFlags,
    /// What was at the path when it was found.
    seen: Option<Occupant>,
}

impl Place {
    /// Resolves the parent of `path` inside `root`. Only looks.
    ///
    /// # Errors
    /// There is no such directory, or the way to it is not safe.
    pub fn find(root: &Root, path: &NodePath) -> Result<Place> {
        let parent = root.directory(path.parent())?;
        let statfs = fstatfs(&parent).map_err(Error::system("fstatfs", path.parent()))?;
        let (file_system, flags) = (statfs.filesystem_type(), statfs.flags());
        let mut place = Place { parent, path: path.clone(), file_system, flags, seen: None };
        place.seen = place.stat(path.name())?.as_ref().map(Occupant::of);
        Ok(place)
    }

    /// Whether the file system answers at once, whatever the container does. Others are asked by [`Place::find`] alone, which runs
    /// where a wait has an end.
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

    /// Whether a node can be made there: the file system is the guest's own and nobody else sees it.
    ///
    /// # Errors
    /// Says why not, and what to use instead.
    pub fn check(&self) -> Result<()> {
        let path = self.path.as_str().to_owned();
        if self.read_only() {
            return Err(Error::ReadOnlyFileSystem { path });
        }
        if !self.answers() {
            return Err(Unsupported::FileSystem { path, file_system: self.file_system() }.into());
        }
        if self.nodev() {
            return Err(Unsupported::NoDev { path }.into());
        }
        Ok(())
    }

    /// What is at the path now; where no node can be made, what was there when it was found.
    ///
    /// # Errors
    /// The kernel cannot tell.
    pub fn occupant(&self) -> Result<Option<Occupant>> {
        if !self.answers() {
            return Ok(self.seen);
        }
        Ok(self.stat(self.path.name())?.as_ref().map(Occupant::of))
    }

    fn stat(&self, name: &str) -> Result<Option<FileStat>> {
        match fstatat(&self.parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(Error::system("fstatat", self.path.as_str())(errno)),
        }
    }

    /// Makes a node under a temporary name. The calling thread's umask must be 0.
    ///
    /// # Errors
    /// Nothing is left behind.
    pub fn make(self, id: &str, number: DeviceNumber, options: NodeOptions) -> Result<Node> {
        let temporary = format!("{TEMPORARY}{id}");
        self.remove_leftover(id)?;
        let mode = Mode::from_bits_truncate(options.mode);
        mknodat(&self.parent, temporary.as_str(), SFlag::S_IFBLK, mode, number.to_raw())
            .map_err(|errno| self.explain("mknodat", errno))?;
        match self.own(&temporary, number, options) {
            Ok((inode, handle)) => Ok(Node { place: self, name: temporary, inode, handle, number }),
            Err(error) => {
                // The error that stopped us says more than one of the removal; a leftover is removed by the next attempt.
                let _ = unlinkat(&self.parent, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
                Err(error)
            }
        }
    }

    fn own(&self, name: &str, number: DeviceNumber, options: NodeOptions) -> Result<(u64, OwnedFd)> {
        let path = || self.path.as_str().to_owned();
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = openat(&self.parent, name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ENOENT => Error::NodeMoved { path: path() },
            other => Error::system("openat", path())(other),
        })?;
        // The container may have put something else there meanwhile: only our own kind of node is changed.
        let stat = fstat(&handle).map_err(Error::system("fstat", path()))?;
        if !matches!(Occupant::of(&stat), Occupant::Block(found, _) if found == number) {
            return Err(Error::NodeMoved { path: path() });
        }
        if (stat.st_uid, stat.st_gid) != (options.uid, options.gid) && !fault::skips("owner") {
            let (uid, gid) = (Uid::from_raw(options.uid), Gid::from_raw(options.gid));
            fchownat(&handle, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
                .map_err(|errno| self.explain("fchownat", errno))?;
        }
        Ok((stat.st_ino, handle))
    }

    /// Removes the temporary node that an earlier attempt for this volume left, if there is one.
    ///
    /// # Errors
    /// Something that is no node has that name.
    pub fn remove_leftover(&self, id: &str) -> Result<bool> {
        if !self.answers() {
            return Ok(false);
        }
        let name = format!("{TEMPORARY}{id}");
        match self.stat(&name)?.as_ref().map(Occupant::of) {
            None => Ok(false),
            Some(Occupant::Block(..)) => self.unlink(&name),
            Some(other) => Err(Error::PathTaken {
                path: format!("{}/{name}", self.path.parent().trim_end_matches('/')),
                by: other.to_string(),
            }),
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
        let name = format!("{TEMPORARY}{id}");
        let found = self.stat(&name)?.as_ref().map(Occupant::of);
        // Anything else under that name is the container's own.
        let is_node = matches!(found, Some(Occupant::Block(..)));
        Ok(is_node.then(|| format!("{}/{name}", self.path.parent().trim_end_matches('/'))))
    }

    /// Removes the node at the path if it is one of `number`. Says whether there was one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&self, number: DeviceNumber) -> Result<bool> {
        match self.occupant()? {
            Some(Occupant::Block(found, _)) if found == number && self.answers() => {
                self.unlink(self.path.name())
            }
            _ => Ok(false),
        }
    }

    fn unlink(&self, name: &str) -> Result<bool> {
        match unlinkat(&self.parent, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(self.explain("unlinkat", errno)),
        }
    }

    fn explain(&self, call: &'static str, errno: Errno) -> Error {
        let path = self.path.as_str().to_owned();
        match errno {
            Errno::EROFS => Error::ReadOnlyFileSystem { path },
            Errno::ENOSPC | Errno::EDQUOT => Error::NoSpace { path },
            // The directory was removed after it was found.
            Errno::ENOENT => Error::ParentMissing { path: self.path.parent().to_owned() },
            Errno::EEXIST => {
                let by = self.occupant().ok().flatten().map_or("file".to_owned(), |found| found.to_string());
                Error::PathTaken { path, by }
            }
            other => Error::system(call, path)(other),
        }
    }
}

/// A node that we made.
#[derive(Debug)]
pub struct Node {
    place: Place,
    name: String,
    inode: u64,
    handle: OwnedFd,
    number: DeviceNumber,
}

impl Node {
    /// Opens that inode, not its name, as a process of the container could (as far as the mount decides).
    ///
    /// # Errors
    /// The node cannot be used. `Ok(false)`: the disk is announced in sysfs and not open for business yet.
    pub fn prove(&self) -> Result<bool> {
        // Through the agent's own /proc: this must not run inside the container's namespace.
        let path = format!("/proc/self/fd/{}", self.handle.as_raw_fd());
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match open(path.as_str(), flags, Mode::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::ENXIO) => Ok(false),
            Err(Errno::EACCES) => {
                Err(Unsupported::NoDev { path: self.place.path.as_str().to_owned() }.into())
            }
            Err(errno) => Err(Error::system("open", format!("device {}", self.number))(errno)),
        }
    }

    /// Gives the node its name. What appears is usable at once.
    ///
    /// # Errors
    /// Something else has the name, or the container moved our node.
    pub fn publish(&mut self) -> Result<()> {
        let name = self.place.path.name();
        let parent = &self.place.parent;
        renameat2(parent, self.name.as_str(), parent, name, RenameFlags::RENAME_NOREPLACE).map_err(
            |errno| match errno {
                Errno::ENOENT => Error::NodeMoved { path: self.place.path.as_str().to_owned() },
                other => self.place.explain("renameat2", other),
            },
        )?;
        self.name = name.to_owned();
        // Between the two names the container may have put a node of its own under the temporary one.
        match self.is_at(&self.name)? {
            true => Ok(()),
            false => Err(Error::NodeMoved { path: self.place.path.as_str().to_owned() }),
        }
    }

    fn is_at(&self, name: &str) -> Result<bool> {
        let found = self.place.stat(name)?;
        Ok(found.is_some_and(|stat| {
            stat.st_ino == self.inode
                && matches!(Occupant::of(&stat), Occupant::Block(number, _) if number == self.number)
        }))
    }

    /// Removes the node, under whichever of its names it has.
    ///
    /// # Errors
    /// It is still somewhere: the container moved it.
    pub fn remove(&self) -> Result<()> {
        for name in [self.name.as_str(), self.place.path.name()] {
            if self.is_at(name)? {
                self.place.unlink(name)?;
            }
        }
        let stat = fstat(&self.handle).map_err(Error::system("fstat", self.place.path.as_str()))?;
        if stat.st_nlink == 0 {
            Ok(())
        } else {
            Err(Error::NodeMoved { path: self.place.path.as_str().to_owned() })
        }
    }
}
