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
    ffi::CStr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    mount::{MsFlags, mount},
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, fchownat},
};

use super::{
    agent_proc::AgentProc, device::Device, identity::Identity, location::Location,
    open::open_device, parents::Parents, unmount::Unmount, watch,
};
use crate::{
    block::DeviceNumber,
    error::{BoxedError, Error, Result, Unsupported},
    fault,
    ids::Ids,
    inode::Inode,
    mount, named,
    namespace::{Target, check_awaited},
    private_dev,
};

/// A rollback gets at least this much time, whatever the deadline was.
const ROLLBACK: Duration = Duration::from_secs(1);

/// A node that is mounted, or is to be.
#[derive(Debug)]
pub struct BindNode {
    location: Location,
    target: Target,
    number: DeviceNumber,
    identity: Identity,
    /// The mount, with the node as its root.
    mount: OwnedFd,
    /// Once it is published.
    parents: Option<Parents>,
}

impl BindNode {
    /// The node with this mount, and nothing in the container yet.
    pub(super) fn new(
        location: Location,
        target: &Target,
        identity: Identity,
        device: Device,
        mount: OwnedFd,
    ) -> BindNode {
        if !device.guarded {
            let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
            let inode = Inode::of(&mount).ok();
            watch::begin(&identity, &target.id, inode.as_ref(), path.as_str());
        }
        let (target, number) = (target.clone(), device.number);
        BindNode { location, target, number, identity, mount, parents: None }
    }

    pub(super) fn verify_open(&self) -> Result<bool> {
        open_device(&self.mount, self.number, &self.location)
    }

    pub(super) fn container(&self) -> &str {
        &self.target.id
    }

    /// Publishes nodes of one container in their order, on one thread: to enter its namespace takes
    /// longer than to attach a mount there.
    ///
    /// # Errors
    /// The index of the node that cannot be published, and why. Those before it are.
    pub(super) fn publish_all(
        nodes: &mut [&mut BindNode],
        deadline: Instant,
    ) -> Result<(), (usize, BoxedError)> {
        let Some(target) = nodes.first().map(|node| node.target.clone()) else { return Ok(()) };
        let at_first = |error| (0, error);
        let ids = Ids::of(&target).map_err(at_first)?;
        let (mut parts, mut undo) = (Vec::new(), Vec::new());
        for (index, node) in nodes.iter().enumerate() {
            let mount = node.mount.try_clone().map_err(Error::system("fcntl", &"a mount"));
            let part = mount.and_then(|mount| Ok((node.location.try_clone()?, mount)));
            parts.push(part.map_err(|error| (index, error))?);
            // Prepared here: a container's /proc is not trusted. The path is not either, after a
            // while.
            let unmount = node.unmount(Instant::now() + ROLLBACK, None);
            undo.push(unmount.map_err(|error| (index, error))?);
        }
        let work = move || {
            ids.assume()?;
            umask(Mode::empty());
            let (mut published, mut failed) = (Vec::with_capacity(parts.len()), None);
            for (location, mount) in &parts {
                let one = check_awaited().and_then(|()| publish(location, mount));
                match one {
                    Ok(one) => published.push(one),
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            Ok((published, failed))
        };
        let abandoned = move |(published, _): (Vec<(OwnedFd, Parents)>, _)| {
            for (mut unmount, (_, parents)) in undo.into_iter().zip(published).rev() {
                unmount.deadline = Instant::now() + ROLLBACK;
                // There is no one to report an error to.
                let _ = unmount.run(&[]);
                parents.remove();
            }
        };
        let visit = target.enter_with_undo(move |_| work(), abandoned).map_err(at_first)?;
        let (published, failed) = visit.finish(deadline).map_err(at_first)?;
        let count = published.len();
        for (node, (directory, parents)) in nodes.iter_mut().zip(published) {
            node.location.set_directory(directory);
            node.parents = Some(parents);
        }
        failed.map_or(Ok(()), |error| Err((count, error)))
    }

    pub(super) fn parents_made(&self) -> Vec<String> {
        match &self.parents {
            Some(parents) => parents.paths.clone(),
            None => self.location.missing_paths(),
        }
    }

    pub(super) fn remove(&self, deadline: Instant) -> Result<()> {
        let Some(parents) = &self.parents else { return Ok(()) };
        let deadline = deadline.max(Instant::now() + ROLLBACK);
        let directory = self.location.directory().try_clone();
        let file = directory.map_err(Error::system("fcntl", &"a directory"))?;
        let unmount =
            self.unmount(deadline, Some((file, self.location.path().name().to_owned())))?;
        // Something of it may be on a file system that outlives the container.
        let entered = self.target.enter_even_ended(move || unmount.run(&[]));
        let removed = entered.and_then(|entered| entered.finish(deadline));
        parents.remove();
        // Before the disk is deleted. Our own mount is closed later, which the next sweep sees.
        watch::keep(&self.identity, Some(self.number));
        let removed = removed?;
        if removed.options.is_some() && removed.left.is_empty() {
            Ok(())
        } else {
            Err(self.location.moved())
        }
    }

    fn unmount(&self, deadline: Instant, file: Option<(OwnedFd, String)>) -> Result<Unmount> {
        Ok(Unmount {
            identity: self.identity.clone(),
            number: Some(self.number),
            file,
            was_bind: true,
            watch_for: None,
            deadline,
            proc: AgentProc::open()?,
        })
    }
}

/// The mounts of nodes, in the order of what was asked for, and why the next one could not be made.
pub(super) type Mounts = (Vec<OwnedFd>, Option<BoxedError>);

/// Makes nodes, each on a private tmpfs, on one thread of the container's: a mount namespace takes
/// longer to make and to end than a node.
///
/// # Errors
/// The kernel refuses a thread or a namespace.
pub(super) fn private_nodes(
    target: &Target,
    nodes: Vec<(Device, Identity)>,
    deadline: Instant,
) -> Result<Mounts> {
    let work = move || {
        private_dev::isolate()?;
        let mut mounts = Vec::with_capacity(nodes.len());
        for (device, identity) in &nodes {
            match private_node(*device, identity) {
                Ok(mount) => mounts.push(mount),
                Err(error) => return Ok((mounts, Some(error))),
            }
        }
        Ok((mounts, None))
    };
    target.aside(work)?.finish(deadline)
}

/// Makes the node on a private tmpfs. Runs on a thread that is isolated.
fn private_node(device: Device, identity: &Identity) -> Result<OwnedFd> {
    const NONE: Option<&CStr> = None;
    let mode = Mode::from_bits_truncate(device.options.mode);
    let name = private_dev::make(identity.source(), identity.name(), device.number, mode)?;
    if !fault::skips("owner") {
        let (uid, gid) = (Uid::from_raw(device.options.uid), Gid::from_raw(device.options.gid));
        fchownat(AT_FDCWD, &*name, Some(uid), Some(gid), AtFlags::empty())
            .map_err(Error::system("fchownat", &"a node"))?;
    }
    if device.read_only {
        let flags =
            private_dev::FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(NONE, private_dev::PATH, NONE, flags, NONE)
            .map_err(Error::system("mount", &"MS_RDONLY"))?;
    }
    let copy = mount::copy_of(&name).map_err(Error::system("open_tree", &"a private node"))?;
    mount::set_propagation(&copy, libc::MS_UNBINDABLE)
        .map_err(Error::system("mount_setattr", &"MS_UNBINDABLE"))?;
    // A container that is quick to give up its node gives up the last mount of it.
    private_dev::leave().map_err(Error::system("umount2", &"a tmpfs"))?;
    Ok(copy)
}

/// Makes the directories that do not exist, and attaches the mount there.
fn publish(location: &Location, mount: &OwnedFd) -> Result<(OwnedFd, Parents)> {
    let (directory, parents) = location.make_parents()?;
    match mount_over_file(location, &directory, mount) {
        Ok(()) => Ok((directory, parents)),
        Err(error) => {
            parents.remove();
            Err(error)
        }
    }
}

/// Makes an empty file without permissions, and attaches the mount over it. Runs inside the
/// container's namespace.
fn mount_over_file(location: &Location, directory: &OwnedFd, mount: &OwnedFd) -> Result<()> {
    let name = location.path().name();
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file =
        named::openat(directory, name, flags).map_err(|errno| location.explain("openat", errno))?;
    let result = mount::move_onto(mount, &file).map_err(|errno| match errno {
        // An unbindable mount cannot propagate, so that the kernel does not attach it below a
        // shared mount.
        Errno::EINVAL => Unsupported::Shared { path: location.path().as_str().to_owned() }.into(),
        Errno::ENOENT => location.moved(),
        other => Error::system("move_mount", &location.path().as_str())(other),
    });
    let result = result.and_then(|()| {
        // From now on the container may treat it as its other mounts.
        mount::set_propagation(mount, libc::MS_PRIVATE)
            .map_err(Error::system("mount_setattr", &"MS_PRIVATE"))
    });
    if result.is_err() {
        // The first error is more useful than an error of the removal. A file that the container
        // has put there instead is not removed.
        if matches!(Inode::synced_at(directory, name), Ok(Some(found)) if is_same(&found, &file)) {
            let _ = named::unlinkat(directory, name);
        }
    }
    result
}

fn is_same(found: &Inode, file: &OwnedFd) -> bool {
    Inode::of(file)
        .is_ok_and(|ours| (ours.number, ours.file_system) == (found.number, found.file_system))
}
