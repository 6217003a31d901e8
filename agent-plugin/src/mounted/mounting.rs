//! Attaches a mount at a directory of a container, by descriptors alone
//! ([move_mount(2)](https://man7.org/linux/man-pages/man2/move_mount.2.html)), and takes it away
//! again where the attach fails. The mount takes part in no propagation: while it is attached, the
//! kernel itself refuses a place from which it would propagate.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag},
    sys::stat::{Mode, mkdirat, umask},
};

use super::{identity::MountIdentity, point::Point, removal::unmount, unmount::Unmount};
use crate::{
    device_node::{Location, Parents},
    error::{Error, Result, Unsupported},
    fault,
    file_system::Detached,
    ids::Ids,
    inode::Inode,
    log, mount,
    named::{self, c_name},
    namespace::{Target, check_awaited},
    thread::Thread,
    worker::Worker,
};

/// A rollback gets at least this much time, whatever the deadline was.
const ROLLBACK: Duration = Duration::from_secs(1);

/// A file system that is mounted in a container, or is to be.
#[derive(Debug)]
pub struct Mounting {
    location: Location,
    target: Target,
    identity: MountIdentity,
    /// The mount; `None`: it was given up.
    mount: Option<OwnedFd>,
    /// Once it is attached.
    parents: Option<Parents>,
    was_missing: bool,
}

impl Mounting {
    /// # Errors
    /// The kernel cannot read what is at the mount point, or something else is there by now.
    pub fn new(
        location: Location,
        target: &Target,
        identity: MountIdentity,
        detached: Detached,
    ) -> Result<Mounting> {
        let was_missing = match location.point()? {
            Point::Missing => true,
            Point::Directory => false,
            other => return Err(location.taken_by(other)),
        };
        let (target, mount) = (target.clone(), Some(detached.mount));
        Ok(Mounting { location, target, identity, mount, parents: None, was_missing })
    }

    /// Attaches the mount.
    ///
    /// # Errors
    /// The container has put something else there, or moved it. Nothing is left behind.
    pub fn publish(&mut self, deadline: Instant) -> Result<()> {
        let Some(mount) = &self.mount else { return Err(self.location.moved()) };
        if fault::skips("mount") {
            return Ok(());
        }
        if fault::wants("mount", "guest") {
            let _ = std::fs::create_dir_all(self.location.path().as_str());
        }
        let ids = Ids::of(&self.target)?;
        let mount = mount.try_clone().map_err(Error::system("fcntl", &"a mount"))?;
        let location = self.location.try_clone()?;
        // The file of the fault points is the guest's.
        let is_unbindable = !fault::skips("private");
        let work = move || {
            ids.assume()?;
            umask(Mode::empty());
            let (directory, mut parents) = location.make_parents()?;
            match attach(&location, &directory, &mut parents, &mount, is_unbindable) {
                Ok(()) => Ok(parents),
                Err(error) => {
                    parents.remove();
                    Err(error)
                }
            }
        };
        // Prepared here: a container's /proc is not trusted.
        let mut unmount = self.unmount(deadline)?;
        let abandoned = move |parents: Parents| {
            unmount.deadline = Instant::now() + ROLLBACK;
            // There is no one to report an error to.
            let _ = unmount.run(&[]);
            parents.remove();
        };
        let visit = self.target.enter_with_undo(move |_| work(), abandoned)?;
        self.parents = Some(visit.finish(deadline)?);
        Ok(())
    }

    /// The directories that were made for it, outermost first, the mount point last; before it is
    /// published, those that will be made.
    pub fn parents_made(&self) -> Vec<String> {
        match &self.parents {
            Some(parents) => parents.paths.clone(),
            None => {
                let mut paths = self.location.missing_paths();
                paths.extend(self.was_missing.then(|| self.location.path().as_str().to_owned()));
                paths
            }
        }
    }

    /// Takes the mount away, and the directories that were made for it. Its file system ends with
    /// it, unless a process of the container has begun to use it.
    ///
    /// # Errors
    /// The mount is still there: the container moved it.
    pub fn remove(&mut self, deadline: Instant) -> Result<()> {
        let deadline = deadline.max(Instant::now() + ROLLBACK);
        let removed = match &self.parents {
            Some(parents) => {
                let unmount = self.unmount(deadline)?;
                let entered = self.target.enter_even_ended(move || unmount.run(&[]));
                let removed = entered.and_then(|entered| entered.finish(deadline));
                parents.remove();
                removed.map(|removed| removed.count > 0 && removed.left.is_empty())
            }
            None => Ok(true),
        };
        self.parents = None;
        self.close(deadline)?;
        match removed? {
            true => Ok(()),
            false => Err(self.location.moved()),
        }
    }

    fn unmount(&self, deadline: Instant) -> Result<Unmount> {
        unmount(self.identity.clone(), true, deadline)
    }

    /// Gives up our own descriptor. The last one writes back the file system: that takes until the
    /// disk has answered.
    fn close(&mut self, deadline: Instant) -> Result<()> {
        let Some(mount) = self.mount.take() else { return Ok(()) };
        let worker = Worker::start(Thread::Disk, move || drop(mount))?;
        if worker.ends_within(deadline.saturating_duration_since(Instant::now())) {
            return worker.join();
        }
        Err(Error::TimedOut { awaited: "the disk to be unmounted".to_owned() }.into())
    }
}

/// Attaches the mount over the directory at the path, which is made where it is missing. Runs
/// inside the container's namespace.
fn attach(
    location: &Location,
    directory: &OwnedFd,
    parents: &mut Parents,
    mount: &OwnedFd,
    is_unbindable: bool,
) -> Result<()> {
    let point = opened(location, directory, parents)?;
    if is_unbindable {
        mount::set_propagation(mount, libc::MS_UNBINDABLE)
            .map_err(Error::system("mount_setattr", &"MS_UNBINDABLE"))?;
    }
    check_awaited()?;
    mount::move_onto(mount, &point).map_err(|errno| match errno {
        // An unbindable mount cannot propagate, so that the kernel does not attach it below a
        // shared mount.
        Errno::EINVAL => Unsupported::Shared { path: location.path().as_str().to_owned() }.into(),
        Errno::ENOENT => location.moved(),
        other => Error::system("move_mount", &location.path().as_str())(other),
    })?;
    // From now on the container may treat it as its other mounts.
    if let Err(errno) = mount::set_propagation(mount, libc::MS_PRIVATE) {
        log::warn(format_args!("a mount stays unbindable: mount_setattr: {errno}"));
    }
    Ok(())
}

/// Opens the directory at the path, and nothing else: no link, and no mount.
fn opened(location: &Location, directory: &OwnedFd, parents: &mut Parents) -> Result<OwnedFd> {
    let name = location.path().name();
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    let open = || named::openat2(directory, name.as_bytes(), how);
    let opened = match open() {
        Err(Errno::ENOENT) => {
            check_awaited()?;
            let mode = Mode::from_bits_truncate(0o755);
            match c_name(name.as_bytes()).and_then(|name| mkdirat(directory, &*name, mode)) {
                Ok(()) => {
                    let directory = directory.try_clone();
                    let directory = directory.map_err(Error::system("fcntl", &"a directory"))?;
                    parents.add(directory, name, location.path().as_str());
                }
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(location.explain("mkdirat", errno)),
            }
            open()
        }
        result => result,
    };
    opened.map_err(|errno| match errno {
        Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV => match Inode::at(&directory.as_fd(), name) {
            Ok(found @ Some(_)) => location.taken_by(Point::of(found.as_ref())),
            _ => location.moved(),
        },
        Errno::ENOENT => location.moved(),
        other => Error::system("openat2", &location.path().as_str())(other),
    })
}
