//! A bind node: mounted into the container over an empty file
//! ([mount_namespaces(7)](https://man7.org/linux/man-pages/man7/mount_namespaces.7.html),
//! [user_namespaces(7)](https://man7.org/linux/man-pages/man7/user_namespaces.7.html)).
//!
//! The node itself is on a private tmpfs, in a mount namespace that a thread makes for a moment: it
//! is not visible anywhere else, and what the container does to the mount (a read-only remount, for
//! example) affects this one file. The thread returns a copy of the mount as a descriptor, which is
//! attached over a file of the container, again by descriptor. The mount takes part in no
//! propagation: while it is attached, the kernel itself refuses a location from which it would
//! propagate.

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

use super::{
    device::Device, location::Location, open::open_device, parents::Parents, path::NodePath,
};
use crate::{
    block::DeviceNumber,
    error::{Error, Result, Unsupported},
    fault,
    ids::Ids,
    inode::Inode,
    mount,
    namespace::{Target, check_awaited},
};

/// The mount point of the private tmpfs, over the guest's devices, in the thread's own namespace.
const PRIVATE: &str = "/dev";
const SOURCE: &CStr = c"/dev/volume";

/// A rollback gets at least this much time, whatever the deadline was.
const ROLLBACK: Duration = Duration::from_secs(1);

/// A node that is mounted, or is to be.
#[derive(Debug)]
pub struct BindNode {
    location: Location,
    target: Target,
    number: DeviceNumber,
    /// The mount, with the node as its root.
    mount: OwnedFd,
    /// Once it is published.
    parents: Option<Parents>,
}

impl BindNode {
    /// Makes the node, and nothing in the container yet.
    pub(super) fn new(
        location: Location,
        target: &Target,
        device: Device,
        deadline: Instant,
    ) -> Result<BindNode> {
        let mount = target.aside(move || private_node(device))?.finish(deadline)?;
        let (target, number) = (target.clone(), device.number);
        Ok(BindNode { location, target, number, mount, parents: None })
    }

    pub(super) fn verify_open(&self) -> Result<bool> {
        open_device(&self.mount, self.number, &self.location)
    }

    pub(super) fn publish(&mut self, deadline: Instant) -> Result<()> {
        let ids = Ids::of(&self.target)?;
        let mount = self.mount.try_clone().map_err(Error::system("fcntl", "a mount"))?;
        let location = self.location.try_clone()?;
        let work = move || {
            ids.assume()?;
            umask(Mode::empty());
            let (directory, parents) = location.make_parents()?;
            match mount_over_file(&location, &directory, &mount) {
                Ok(()) => Ok((directory, parents)),
                Err(error) => {
                    parents.remove();
                    Err(error)
                }
            }
        };
        let (name, number) = (self.location.path().clone(), self.number);
        let abandoned = move |(directory, parents): (OwnedFd, Parents)| {
            // There is no one to report an error to.
            let _ = unmount(&directory, &name, number);
            parents.remove();
        };
        let visit = self.target.enter_with(|| Ok(()), move |_, ()| work(), abandoned)?;
        let (directory, parents) = visit.finish(deadline)?;
        self.location.set_directory(directory);
        self.parents = Some(parents);
        Ok(())
    }

    pub(super) fn parents_made(&self) -> Vec<String> {
        self.parents.as_ref().map(|parents| parents.paths.clone()).unwrap_or_default()
    }

    pub(super) fn remove(&self, deadline: Instant) -> Result<()> {
        let Some(parents) = &self.parents else { return Ok(()) };
        let removed = remove(
            &self.location,
            &self.target,
            self.number,
            deadline.max(Instant::now() + ROLLBACK),
        );
        parents.remove();
        if removed? { Ok(()) } else { Err(self.location.moved()) }
    }
}

/// Unmounts the node of `number`, and removes the file below it if it is as empty as ours was.
pub(super) fn remove(
    location: &Location,
    target: &Target,
    number: DeviceNumber,
    deadline: Instant,
) -> Result<bool> {
    let directory =
        location.directory().try_clone().map_err(Error::system("fcntl", "a directory"))?;
    let path = location.path().clone();
    // The file may be on something that outlives the container.
    target.enter_even_ended(move || unmount(&directory, &path, number))?.finish(deadline)
}

/// Makes the node on a private tmpfs. Runs on a thread that ends soon: it has left its namespace.
fn private_node(device: Device) -> Result<OwnedFd> {
    const NONE: Option<&str> = None;
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system("unshare", "CLONE_NEWNS"))?;
    // Mounts from now on do not propagate.
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

/// Makes an empty file without permissions, and attaches the mount over it. Runs inside the
/// container's namespace.
fn mount_over_file(location: &Location, directory: &OwnedFd, mount: &OwnedFd) -> Result<()> {
    let name = location.path().name();
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty())
        .map_err(|errno| location.explain("openat", errno))?;
    let result = mount::move_onto(mount, &file).map_err(|errno| match errno {
        // An unbindable mount cannot propagate, so that the kernel does not attach it below a
        // shared mount.
        Errno::EINVAL => Unsupported::Shared { path: location.path().as_str().to_owned() }.into(),
        Errno::ENOENT => location.moved(),
        other => Error::system("move_mount", location.path().as_str())(other),
    });
    let result = result.and_then(|()| {
        // From now on the container may treat it as its other mounts.
        mount::set_propagation(mount, libc::MS_PRIVATE)
            .map_err(Error::system("mount_setattr", "MS_PRIVATE"))
    });
    if result.is_err() {
        // The first error is more useful than an error of the removal. A file that the container
        // has put there instead is not removed.
        if matches!(Inode::synced_at(directory, name), Ok(Some(found)) if is_same(&found, &file)) {
            let _ = unlinkat(directory, name, UnlinkatFlags::NoRemoveDir);
        }
    }
    result
}

fn is_same(found: &Inode, file: &OwnedFd) -> bool {
    Inode::of(file)
        .is_ok_and(|ours| (ours.number, ours.file_system) == (found.number, found.file_system))
}

/// Unmounts the node and removes the file below it. Runs inside the container's namespace.
/// `false`: there is no such mount.
fn unmount(directory: &OwnedFd, path: &NodePath, number: DeviceNumber) -> Result<bool> {
    let found = Inode::at(directory, path.name()).map_err(Error::system("statx", path.as_str()))?;
    let is_ours =
        |inode: &Inode| inode.is_mounted && inode.kind == SFlag::S_IFBLK && inode.device == number;
    if !found.is_some_and(|inode| is_ours(&inode)) {
        return Ok(false);
    }
    check_awaited()?;
    // No call unmounts relative to a directory's descriptor.
    fchdir(directory).map_err(Error::system("fchdir", path.parent()))?;
    let name = CString::new(path.name())
        .map_err(|_| Error::system("umount2", path.as_str())(Errno::EINVAL))?;
    umount2(name.as_c_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .map_err(Error::system("umount2", path.as_str()))?;
    // A file that is not empty is not ours any more. Others may have put their own file there, such
    // as the host, where the file system is the host's.
    let below =
        Inode::synced_at(directory, path.name()).map_err(Error::system("statx", path.as_str()))?;
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
