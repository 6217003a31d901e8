//! A node that is mounted into the container over an empty file:
//! [mount_namespaces(7)](https://man7.org/linux/man-pages/man7/mount_namespaces.7.html),
//! [user_namespaces(7)](https://man7.org/linux/man-pages/man7/user_namespaces.7.html).
//!
//! The node itself is on a tmpfs of its own, in a mount namespace that a thread makes for the
//! moment: nobody else ever sees it, and what the container does to the mount (remount it
//! read-only, say) concerns this one file. A copy of the mount leaves with its descriptor and is
//! put over a file of the container's, by descriptor too. It takes part in no propagation, and
//! while it is moved the kernel itself refuses a place from which it would spread.

use std::{
    ffi::{CStr, CString},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, mknod, umask},
    unistd::{Gid, Uid, UnlinkatFlags, fchdir, fchownat, unlinkat},
};

use super::{Device, NodePath, Place, made::open_device, moved, parents::Parents};
use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    fault,
    ids::Ids,
    inode::Inode,
    mount,
    namespace::Target,
};

/// Where the thread's own file system is, over the guest's devices, in a namespace of the thread's
/// own.
const PRIVATE: &str = "/dev";
const SOURCE: &CStr = c"/dev/volume";

/// The undo gets this much time, whatever the deadline was.
const UNDO: Duration = Duration::from_secs(1);

/// A node that is mounted, or that will be.
#[derive(Debug)]
pub struct Node {
    place: Place,
    target: Target,
    number: DeviceNumber,
    /// The mount, with the node as its root.
    mount: OwnedFd,
    /// Once it is published.
    parents: Option<Parents>,
}

impl Node {
    /// Nothing is to be seen of it in the container yet.
    pub(super) fn new(
        place: Place,
        target: &Target,
        device: Device,
        deadline: Instant,
    ) -> Result<Node> {
        let mount = target.aside(move || private_node(device))?.finish(deadline)?;
        Ok(Node { place, target: target.clone(), number: device.number, mount, parents: None })
    }

    pub(super) fn prove(&self) -> Result<bool> {
        open_device(&self.mount, self.number, &self.place)
    }

    pub(super) fn publish(&mut self, deadline: Instant) -> Result<()> {
        let ids = Ids::of(&self.target)?;
        let mount = self.mount.try_clone().map_err(Error::system("fcntl", "a mount"))?;
        let place = self.place.try_clone()?;
        let work = move || {
            ids.assume()?;
            umask(Mode::empty());
            let (directory, parents) = place.make_parents()?;
            match put_over_a_file(&place, &directory, &mount) {
                Ok(()) => Ok((directory, parents)),
                Err(error) => {
                    parents.remove();
                    Err(error)
                }
            }
        };
        let (name, number) = (self.place.path().clone(), self.number);
        let abandoned = move |(directory, parents): (OwnedFd, Parents)| {
            // Nobody is there to be told.
            let _ = take_away(&directory, &name, number);
            parents.remove();
        };
        let visit = self.target.enter_with(|| Ok(()), move |_, ()| work(), abandoned)?;
        let (directory, parents) = visit.finish(deadline)?;
        self.place.arrive(directory);
        self.parents = Some(parents);
        Ok(())
    }

    pub(super) fn parents_made(&self) -> Vec<String> {
        self.parents.as_ref().map(|parents| parents.paths.clone()).unwrap_or_default()
    }

    pub(super) fn remove(&self, deadline: Instant) -> Result<()> {
        let Some(parents) = &self.parents else { return Ok(()) };
        let removed =
            remove(&self.place, &self.target, self.number, deadline.max(Instant::now() + UNDO));
        parents.remove();
        if removed? { Ok(()) } else { Err(moved(self.place.path())) }
    }
}

/// Unmounts the node of `number` that is at the place, and removes the file below it if that is as
/// empty as ours was.
pub(super) fn remove(
    place: &Place,
    target: &Target,
    number: DeviceNumber,
    deadline: Instant,
) -> Result<bool> {
    let directory = place.directory().try_clone().map_err(Error::system("fcntl", "a directory"))?;
    let path = place.path().clone();
    // The file may be on something that outlives the container.
    target.enter_even_ended(move || take_away(&directory, &path, number))?.finish(deadline)
}

/// Runs on a thread that ends right after: it has left its namespace.
fn private_node(device: Device) -> Result<OwnedFd> {
    const NONE: Option<&str> = None;
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system("unshare", "CLONE_NEWNS"))?;
    // What is mounted here from now on is mounted nowhere else.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(Error::system("mount", "MS_PRIVATE"))?;
    mount(Some("volume"), PRIVATE, Some("tmpfs"), harmless, Some("size=4k,nr_inodes=4,mode=0711"))
        .map_err(Error::system("mount", "a tmpfs"))?;
    umask(Mode::empty());
    let mode = Mode::from_bits_truncate(device.options.mode);
    mknod(SOURCE, SFlag::S_IFBLK, mode, device.number.to_raw())
        .map_err(Error::system("mknod", "a node"))?;
    if !fault::skips("owner") {
        let (uid, gid) = (Uid::from_raw(device.options.uid), Gid::from_raw(device.options.gid));
        fchownat(AT_FDCWD, SOURCE, Some(uid), Some(gid), AtFlags::empty())
            .map_err(Error::system("fchownat", "a node"))?;
    }
    if device.read_only {
        let flags = harmless | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NONE, PRIVATE, NONE, flags, NONE).map_err(Error::system("mount", "MS_RDONLY"))?;
    }
    let copy = mount::copy_of(SOURCE).map_err(Error::system("open_tree", "a private node"))?;
    mount::set_propagation(&copy, libc::MS_UNBINDABLE)
        .map_err(Error::system("mount_setattr", "MS_UNBINDABLE"))?;
    Ok(copy)
}

/// Makes an empty file that nobody may open, and puts the mount over it. Inside the container's
/// namespace.
fn put_over_a_file(place: &Place, directory: &OwnedFd, mount: &OwnedFd) -> Result<()> {
    let name = place.path().name();
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())
        .map_err(|errno| place.explain("openat", errno))?;
    let result = mount::move_onto(mount, &file).map_err(|errno| match errno {
        // What cannot be bound cannot spread either, so that the kernel takes it to no place that
        // is shared.
        Errno::EINVAL => Unsupported::Shared { path: place.path().as_str().to_owned() }.into(),
        Errno::ENOENT => moved(place.path()),
        other => Error::system("move_mount", place.path().as_str())(other),
    });
    let result = result.and_then(|()| {
        // From here on the container may do with it what it does with its other mounts.
        mount::set_propagation(mount, libc::MS_PRIVATE)
            .map_err(Error::system("mount_setattr", "MS_PRIVATE"))
    });
    if result.is_err() {
        // The error that stopped us says more. Where the container has put something else there,
        // that is left to it.
        if matches!(Inode::asked_at(directory, name), Ok(Some(found)) if is_same(&found, &file)) {
            let _ = unlinkat(directory, name, UnlinkatFlags::NoRemoveDir);
        }
    }
    result
}

fn is_same(found: &Inode, file: &OwnedFd) -> bool {
    Inode::of(file)
        .is_ok_and(|ours| (ours.number, ours.file_system) == (found.number, found.file_system))
}

/// Inside the container's namespace. `false`: there is no such mount.
fn take_away(directory: &OwnedFd, path: &NodePath, number: DeviceNumber) -> Result<bool> {
    let look = || Inode::at(directory, path.name()).map_err(Error::system("statx", path.as_str()));
    let is_ours =
        |inode: &Inode| inode.is_mounted && inode.kind == SFlag::S_IFBLK && inode.device == number;
    if !look()?.is_some_and(|inode| is_ours(&inode)) {
        return Ok(false);
    }
    // There is no call that takes a directory's descriptor.
    fchdir(directory).map_err(Error::system("fchdir", path.parent()))?;
    let name = CString::new(path.name())
        .map_err(|_| Error::system("umount2", path.as_str())(Errno::EINVAL))?;
    umount2(name.as_c_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .map_err(Error::system("umount2", path.as_str()))?;
    // What is not empty is not ours any more, and others may have put their own there: the host,
    // where the file system is its.
    let below =
        Inode::asked_at(directory, path.name()).map_err(Error::system("statx", path.as_str()))?;
    if below.is_some_and(|below| below.kind == SFlag::S_IFREG && below.size == 0) {
        match unlinkat(directory, path.name(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EROFS) => {
                return Err(Error::ReadOnlyFileSystem { path: path.as_str().to_owned() });
            }
            Err(errno) => return Err(Error::system("unlinkat", path.as_str())(errno)),
        }
    }
    Ok(true)
}
