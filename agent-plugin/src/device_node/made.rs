//! A node made under a temporary name, proved by opening it, published by a rename
//! ([mknod(2)](https://man7.org/linux/man-pages/man2/mknod.2.html),
//! [rename(2)](https://man7.org/linux/man-pages/man2/rename.2.html)).

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, open, openat, renameat2},
    sys::stat::{Mode, SFlag, mknodat},
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat},
};

use super::{Device, Occupant, Place, moved, parents::Parents, place::temporary};
use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    fault,
    inode::Inode,
};

/// A node in the container's own file system.
#[derive(Debug)]
pub struct Node {
    place: Place,
    directory: OwnedFd,
    parents: Parents,
    name: String,
    inode: u64,
    handle: OwnedFd,
    number: DeviceNumber,
}

impl Node {
    pub(super) fn new(place: Place, id: &str, device: Device) -> Result<Node> {
        place.remove_leftover(id)?;
        let (directory, parents) = place.make_parents()?;
        match make(&place, &directory, &temporary(id), device) {
            Ok((inode, handle)) => {
                let (name, number) = (temporary(id), device.number);
                Ok(Node { place, directory, parents, name, inode, handle, number })
            }
            Err(error) => {
                parents.remove();
                Err(error)
            }
        }
    }

    pub(super) fn prove(&self) -> Result<bool> {
        open_device(&self.handle, self.number, &self.place)
    }

    pub(super) fn publish(&mut self) -> Result<()> {
        let name = self.place.path().name();
        let directory = &self.directory;
        renameat2(directory, self.name.as_str(), directory, name, RenameFlags::RENAME_NOREPLACE)
            .map_err(|errno| match errno {
                Errno::ENOENT => moved(self.place.path()),
                other => self.place.explain("renameat2", other),
            })?;
        self.name = name.to_owned();
        // Between the two names the container may have put a node of its own under the temporary
        // one.
        if self.is_at(&self.name)? { Ok(()) } else { Err(moved(self.place.path())) }
    }

    pub(super) fn parents_made(&self) -> Vec<String> {
        self.parents.paths.clone()
    }

    fn is_at(&self, name: &str) -> Result<bool> {
        let found = Inode::at(&self.directory, name)
            .map_err(Error::system("statx", self.place.path().as_str()))?;
        Ok(found.is_some_and(|found| found.number == self.inode && is_node(&found, self.number)))
    }

    /// Removes the node, under whichever of its names it has.
    pub(super) fn remove(&self) -> Result<()> {
        for name in [self.name.as_str(), self.place.path().name()] {
            if self.is_at(name)? {
                match unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(self.place.explain("unlinkat", errno)),
                }
            }
        }
        self.parents.remove();
        let inode =
            Inode::of(&self.handle).map_err(Error::system("statx", self.place.path().as_str()))?;
        if inode.links == 0 { Ok(()) } else { Err(moved(self.place.path())) }
    }
}

fn make(place: &Place, directory: &OwnedFd, name: &str, device: Device) -> Result<(u64, OwnedFd)> {
    let mode = Mode::from_bits_truncate(device.options.mode);
    mknodat(directory, name, SFlag::S_IFBLK, mode, device.number.to_raw())
        .map_err(|errno| place.explain("mknodat", errno))?;
    let owned = own(place, directory, name, device);
    if owned.is_err() {
        // The error that stopped us says more than one of the removal; a leftover is removed by the
        // next attempt.
        let _ = unlinkat(directory, name, UnlinkatFlags::NoRemoveDir);
    }
    owned
}

fn own(place: &Place, directory: &OwnedFd, name: &str, device: Device) -> Result<(u64, OwnedFd)> {
    let path = || place.path().as_str();
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let handle = openat(directory, name, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOENT => moved(place.path()),
        other => Error::system("openat", path())(other),
    })?;
    // The container may have put something else there meanwhile: only our own kind of node is
    // changed.
    let inode = Inode::of(&handle).map_err(Error::system("statx", path()))?;
    if !is_node(&inode, device.number) {
        return Err(moved(place.path()));
    }
    let options = device.options;
    if (inode.uid, inode.gid) != (options.uid, options.gid) && !fault::skips("owner") {
        let (uid, gid) = (Uid::from_raw(options.uid), Gid::from_raw(options.gid));
        fchownat(&handle, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)
            .map_err(|errno| place.explain("fchownat", errno))?;
    }
    Ok((inode.number, handle))
}

fn is_node(inode: &Inode, number: DeviceNumber) -> bool {
    matches!(Occupant::of(inode), Occupant::Block(found, _) if found == number)
}

/// Opens the node behind `handle`. `false`: the disk is not open for business yet.
pub(super) fn open_device(handle: &OwnedFd, number: DeviceNumber, place: &Place) -> Result<bool> {
    // Through the agent's own /proc: this must not run inside the container's namespace.
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match open(path.as_str(), flags, Mode::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::ENXIO) => Ok(false),
        Err(Errno::EACCES) => {
            Err(Unsupported::NoDev { path: place.path().as_str().to_owned() }.into())
        }
        Err(errno) => Err(Error::system("open", format!("device {number}"))(errno)),
    }
}
