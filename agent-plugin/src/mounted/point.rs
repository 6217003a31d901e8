//! What is at a mount point, in a file system that is not trusted, and whether a mount can be
//! there.

use std::fmt;

use nix::sys::stat::SFlag;

use crate::{
    block::DeviceNumber,
    device_node::{Existing, Location},
    error::{BoxedError, Error, Result, Unsupported},
    fault,
    inode::Inode,
    mount,
    text::displayed,
};

/// What is at a mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Nothing: a directory is made.
    Missing,
    /// A directory, on which nothing is mounted.
    Directory,
    /// The mount of this id.
    Mount(u64),
    /// Something that is not a directory. No link is followed.
    Other(Existing),
}

impl Point {
    pub(super) fn of(inode: Option<&Inode>) -> Point {
        match inode {
            None => Point::Missing,
            Some(inode) if inode.is_mounted => Point::Mount(inode.mount),
            Some(inode) if inode.kind == SFlag::S_IFDIR => Point::Directory,
            Some(inode) => Point::Other(Existing::of(inode)),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Missing => f.write_str("nothing"),
            Point::Directory => f.write_str("directory"),
            Point::Mount(_) => f.write_str("mount"),
            Point::Other(existing) => existing.fmt(f),
        }
    }
}

impl Location {
    /// What is at the path, as a mount point.
    ///
    /// # Errors
    /// The kernel cannot read the inode.
    pub fn point(&self) -> Result<Point> {
        Ok(Point::of(self.inode()?.as_ref()))
    }

    /// The device number of the file system that is mounted there.
    ///
    /// # Errors
    /// The kernel cannot read the inode.
    pub(crate) fn mounted_device(&self) -> Result<Option<DeviceNumber>> {
        Ok(self.inode()?.filter(|inode| inode.is_mounted).map(|inode| inode.file_system))
    }

    /// Checks that a file system can be mounted there, apart from what is at the path now.
    ///
    /// # Errors
    /// Why not, and what to use instead.
    pub fn check_mount(&self) -> Result<()> {
        let path = || self.path().as_str().to_owned();
        if self.point()? == Point::Missing {
            if self.read_only() {
                return Err(Error::ReadOnlyFileSystem { path: path() }.into());
            }
            self.check_takes_files()?;
        }
        if !mount::can_set_propagation() {
            return Err(Unsupported::Kernel { call: "mount_setattr", since: "5.12" }.into());
        }
        if self.is_shared() && !fault::skips("private") {
            return Err(Unsupported::Shared { path: path() }.into());
        }
        Ok(())
    }

    /// The error where something else is at the mount point.
    pub(crate) fn taken_by(&self, point: Point) -> BoxedError {
        let (path, by) = (self.path().as_str().to_owned(), displayed(&point));
        BoxedError::from(Error::PathTaken { path, by })
    }
}
