//! A mknod node: made under a temporary name, opened, published by a rename
//! ([mknod(2)](https://man7.org/linux/man-pages/man2/mknod.2.html),
//! [rename(2)](https://man7.org/linux/man-pages/man2/rename.2.html)).

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag},
    sys::stat::{Mode, SFlag, mknodat},
    unistd::{Gid, Uid, fchownat},
};

use super::{
    device::Device,
    existing::Existing,
    location::{Location, temporary},
    open::open_device,
    parents::Parents,
};
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    fault,
    inode::Inode,
    named::{self, c_name},
    rename::rename_in,
};

/// A node in the container's own file system.
#[derive(Debug)]
pub struct MknodNode {
    location: Location,
    directory: OwnedFd,
    parents: Parents,
    name: String,
    inode: u64,
    handle: OwnedFd,
    number: DeviceNumber,
}

impl MknodNode {
    pub(super) fn new(location: Location, id: &str, device: Device) -> Result<MknodNode> {
        location.remove_leftover(id)?;
        let (directory, parents) = location.make_parents()?;
        match make(&location, &directory, &temporary(id), device) {
            Ok((inode, handle)) => {
                let (name, number) = (temporary(id), device.number);
                Ok(MknodNode { location, directory, parents, name, inode, handle, number })
            }
            Err(error) => {
                parents.remove();
                Err(error)
            }
        }
    }

    pub(super) fn verify_open(&self) -> Result<bool> {
        open_device(&self.handle, self.number, &self.location)
    }

    pub(super) fn publish(&mut self) -> Result<()> {
        let name = self.location.path().name();
        rename_in(&self.directory, &self.name, name).map_err(|errno| match errno {
            Errno::ENOENT => self.location.moved(),
            other => self.location.explain("renameat2", other),
        })?;
        self.name = name.to_owned();
        // Before the rename the container may have put its own node under the temporary name.
        if self.is_at(&self.name)? { Ok(()) } else { Err(self.location.moved()) }
    }

    pub(super) fn parents_made(&self) -> Vec<String> {
        self.parents.paths.clone()
    }

    fn is_at(&self, name: &str) -> Result<bool> {
        let found = Inode::at(&self.directory, name)
            .map_err(Error::system("statx", &self.location.path().as_str()))?;
        Ok(found.is_some_and(|found| found.number == self.inode && is_node(&found, self.number)))
    }

    /// Removes the node, under its temporary or its final name.
    pub(super) fn remove(&self) -> Result<()> {
        for name in [self.name.as_str(), self.location.path().name()] {
            if self.is_at(name)? {
                match named::unlinkat(&self.directory, name) {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(self.location.explain("unlinkat", errno)),
                }
            }
        }
        self.parents.remove();
        let inode = Inode::of(&self.handle)
            .map_err(Error::system("statx", &self.location.path().as_str()))?;
        if inode.links == 0 { Ok(()) } else { Err(self.location.moved()) }
    }
}

fn make(
    location: &Location,
    directory: &OwnedFd,
    name: &str,
    device: Device,
) -> Result<(u64, OwnedFd)> {
    let mode = Mode::from_bits_truncate(device.options.mode);
    c_name(name.as_bytes())
        .and_then(|name| mknodat(directory, &*name, SFlag::S_IFBLK, mode, device.number.to_raw()))
        .map_err(|errno| location.explain("mknodat", errno))?;
    let owned = own(location, directory, name, device);
    if owned.is_err() {
        // The first error is more useful than an error of the removal; a leftover is removed by the
        // next attempt.
        let _ = named::unlinkat(directory, name);
    }
    owned
}

/// Opens the new node and sets its owner. Returns its inode number, and a handle.
fn own(
    location: &Location,
    directory: &OwnedFd,
    name: &str,
    device: Device,
) -> Result<(u64, OwnedFd)> {
    let path = || location.path().as_str();
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let handle = named::openat(directory, name, flags).map_err(|errno| match errno {
        Errno::ENOENT => location.moved(),
        other => Error::system("openat", &path())(other),
    })?;
    // The container may have put something else there in the meantime: only a node of our device
    // is changed.
    let inode = Inode::of(&handle).map_err(Error::system("statx", &path()))?;
    if !is_node(&inode, device.number) {
        return Err(location.moved());
    }
    let options = device.options;
    if (inode.uid, inode.gid) != (options.uid, options.gid) && !fault::skips("owner") {
        let (uid, gid) = (Uid::from_raw(options.uid), Gid::from_raw(options.gid));
        fchownat(&handle, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
            .map_err(|errno| location.explain("fchownat", errno))?;
    }
    Ok((inode.number, handle))
}

fn is_node(inode: &Inode, number: DeviceNumber) -> bool {
    matches!(Existing::of(inode), Existing::Block(found, _) if found == number)
}
