//! Unmounts in one mount namespace, wherever the mount is there now
//! ([umount(2)](https://man7.org/linux/man-pages/man2/umount.2.html)).
//!
//! The container may move its mounts and rename their directories at any time. So a path is only a
//! hint from mountinfo, and what is found there is ours if it is on the mount of that id. A plain
//! unmount takes no descriptor, because one would keep the mount busy: it is done by the last
//! component of the path, in the directory that was opened.

use std::{
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, umount2},
    unistd::{chroot, fchdir},
};

use super::identity::MountIdentity;
use crate::{
    device_node::{AgentProc, LeftBehind, is_over, place, reach_both, shown},
    error::{Error, Result},
    inode::Inode,
    named::{self, c_name},
    namespace::check_awaited,
    procfs::mountinfo::MountLine,
};

/// How often mountinfo is read again: the container may rename a directory between that and the
/// open, or have mounted over the mount as often as this.
const TRIES: usize = 64;

const UNREACHED: &str = "the mount is not reached by its path: something is mounted over it, or it \
                         is moved all the time";

/// What to unmount, for a thread in a mount namespace that may have it.
#[derive(Debug)]
pub struct Unmount {
    pub(super) identity: MountIdentity,
    /// Every mount of the volume, not only that of the attachment.
    pub(super) whole_volume: bool,
    /// Whatever uses it.
    pub(super) lazy: bool,
    /// Nothing is changed after it.
    pub(super) deadline: Instant,
    pub(super) proc: AgentProc,
}

/// What an unmount did.
#[derive(Debug, Default)]
pub struct Unmounted {
    /// How many mounts are gone.
    pub count: usize,
    /// One of them is in use, and stays.
    pub busy: bool,
    /// What stays for another reason.
    pub left: Vec<LeftBehind>,
}

/// What became of a mount.
enum Step {
    Done,
    /// Something that was over it is gone.
    Progress,
    /// It is elsewhere by now, or not reached by its path.
    Unreached,
    /// It is in use.
    Busy,
    Refused(Errno),
}

impl Unmount {
    /// Unmounts below the thread's own root directory, and then as seen from each of `roots`. The
    /// thread must have a root and a working directory of its own, and ends soon.
    ///
    /// # Errors
    /// The mounts cannot be read.
    pub fn run(&self, roots: &[OwnedFd]) -> Result<Unmounted> {
        let mut done = Unmounted::default();
        let mut seen = self.below_root(&mut done)?;
        for root in roots {
            if seen.is_some() && seen == place(root) {
                continue;
            }
            fchdir(root)
                .and_then(|()| chroot("."))
                .map_err(Error::system("chroot", &"a container's root"))?;
            seen = self.below_root(&mut done)?;
        }
        Ok(done)
    }

    /// Returns where the root directory is.
    fn below_root(&self, done: &mut Unmounted) -> Result<crate::device_node::Place> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = named::open("/", flags).map_err(Error::system("open", &"/"))?;
        let mut left: Vec<(u32, LeftBehind)> = Vec::new();
        for attempt in 1..=TRIES {
            let text = self.proc.mountinfo()?;
            let lines: Vec<_> = MountLine::all(&text).collect();
            let is_left = |id| left.iter().any(|(left, _)| *left == id);
            let ours = |line: &&MountLine<'_>| self.is_wanted(line) && !is_left(line.id);
            // Those that are on others come later in mountinfo.
            let ours: Vec<_> = lines.iter().filter(ours).copied().collect();
            if ours.is_empty() {
                break;
            }
            let is_last = attempt == TRIES || Instant::now() >= self.deadline;
            for line in ours.iter().rev() {
                let reason = match self.step(&root, line, &lines) {
                    Step::Done => {
                        done.count += 1;
                        continue;
                    }
                    Step::Busy => {
                        done.busy = true;
                        return Ok(place(&root));
                    }
                    Step::Unreached if is_last => UNREACHED.to_owned(),
                    Step::Progress | Step::Unreached => continue,
                    Step::Refused(errno) => format!("umount2: {errno}"),
                };
                left.push((line.id, LeftBehind::new(shown(&line.point()), reason)));
            }
            if is_last {
                break;
            }
        }
        done.left.extend(left.into_iter().map(|(_, left)| left));
        Ok(place(&root))
    }

    fn is_wanted(&self, line: &MountLine<'_>) -> bool {
        match self.whole_volume {
            true => self.identity.is_of_volume(line),
            false => self.identity.is_shown_by(line),
        }
    }

    fn step(&self, root: &OwnedFd, line: &MountLine<'_>, lines: &[MountLine<'_>]) -> Step {
        let point = line.point();
        let Ok((directory, mounted)) = reach_both(root, &point) else { return Step::Unreached };
        let Ok(inode) = Inode::of(&mounted) else { return Step::Unreached };
        // Whether the request still waits for this.
        if Instant::now() >= self.deadline || check_awaited().is_err() {
            return Step::Unreached;
        }
        let is_ours = inode.mount == u64::from(line.id);
        if !is_ours && !is_over(lines, inode.mount, line.id) {
            return Step::Unreached;
        }
        let result = match self.lazy {
            true => self.proc.unmount(&mounted),
            // The container has mounted over it.
            false if !is_ours => return Step::Busy,
            false => {
                drop(mounted);
                plain(&directory, &point)
            }
        };
        match result {
            Ok(()) if is_ours => Step::Done,
            Ok(()) => Step::Progress,
            Err(Errno::EBUSY) => Step::Busy,
            Err(Errno::EINVAL | Errno::ENOENT) => Step::Unreached,
            Err(errno) => Step::Refused(errno),
        }
    }
}

/// Unmounts what is mounted at the last component of `point`, in its directory.
fn plain(directory: &OwnedFd, point: &[u8]) -> Result<(), Errno> {
    let name = Path::new(OsStr::from_bytes(point)).file_name().ok_or(Errno::EINVAL)?;
    fchdir(directory)?;
    umount2(&*c_name(name.as_bytes())?, MntFlags::UMOUNT_NOFOLLOW)
}
