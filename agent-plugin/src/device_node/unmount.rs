//! Unmounts the bind node of an attachment in one mount namespace, wherever it is there now
//! ([mount_namespaces(7)](https://man7.org/linux/man-pages/man7/mount_namespaces.7.html)).
//!
//! The container may move its mounts and rename their directories at any time. So a path is only a
//! hint from mountinfo: what is opened there is ours if it is on the mount of that id. Only that
//! mount is then unmounted, through its descriptor. A mount that the container put over ours goes
//! first; it would not survive ours anyway.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag},
    sys::stat::SFlag,
    unistd::{chroot, fchdir},
};

use super::{
    agent_proc::AgentProc, device::NodeOptions, identity::Identity, left::LeftBehind, watch,
};
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    inode::Inode,
    log, mount, named,
    namespace::check_awaited,
    procfs::mountinfo::MountLine,
};

/// How often mountinfo is read again: the container may rename a directory between that and the
/// open, or have mounted over the node as often as this.
const TRIES: usize = 64;

/// The bind node of one attachment, for a thread in a mount namespace that may have it.
#[derive(Debug)]
pub(super) struct Unmount {
    pub(super) identity: Identity,
    /// `None`: the disk is gone, and its number may be another's. Then the identity decides.
    pub(super) number: Option<DeviceNumber>,
    /// The name of the file below it, and the directory in which it was looked for, in the
    /// container's own namespace: elsewhere no file is removed.
    pub(super) file: Option<(OwnedFd, String)>,
    /// There was a mount, also if there is none any more.
    pub(super) was_bind: bool,
    /// The container whose node is to be watched, if it is not watched yet.
    pub(super) watch_for: Option<String>,
    /// Nothing is changed after it.
    pub(super) deadline: Instant,
    pub(super) proc: AgentProc,
}

const UNREACHED: &str = "the node's mount is not reached by its path: something is mounted over it, or it is moved all the time";

/// What was found and done.
#[derive(Debug, Default)]
pub(super) struct Unmounted {
    /// Owner and mode of the node, if there was one.
    pub(super) options: Option<NodeOptions>,
    pub(super) left: Vec<LeftBehind>,
    /// Mounts that stay, by their ids.
    mounts: Vec<(u32, LeftBehind)>,
    /// The node's file system has ended, so it has no other mount anywhere.
    has_ended: bool,
}

/// What became of a mount.
enum Step {
    /// Something was unmounted: see what is left.
    Progress,
    /// It is elsewhere by now, or not reached by its path.
    Unreached,
    /// Not ours, although it has our identity.
    Foreign,
    /// It stays.
    Refused(Errno),
}

impl Unmount {
    /// Unmounts it below the thread's own root directory, and then as seen from each of `roots`.
    /// The thread must have a root and a working directory of its own, and ends soon.
    pub(super) fn run(&self, roots: &[OwnedFd]) -> Result<Unmounted> {
        let mut done = Unmounted::default();
        self.at_its_path(&mut done);
        let mut seen = match done.has_ended {
            true => None,
            false => self.below_root(&mut done)?,
        };
        for root in roots {
            // Reading mountinfo takes the longer the more mounts there are.
            if done.has_ended || seen.is_some() && seen == place(root) {
                continue;
            }
            fchdir(root)
                .and_then(|()| chroot("."))
                .map_err(Error::system("chroot", &"a container's root"))?;
            seen = self.below_root(&mut done)?;
        }
        // Where the container moved or unmounted the mount, its file is still there. Ours has no
        // permissions.
        let was_bind = self.was_bind || done.options.is_some();
        if let Some((directory, name)) = self.file.as_ref().filter(|_| was_bind)
            && matches!(Inode::synced_at(directory, name), Ok(Some(file)) if file.permissions == 0)
            && self.may_change()
            && let Err(left) = remove_empty(directory, name, name.as_bytes())
        {
            done.left.push(left);
        }
        done.left.extend(done.mounts.drain(..).map(|(_, left)| left));
        Ok(done)
    }

    /// Unmounts the node where it was made, if it is there and is watched: then the kernel tells
    /// that the inode is ours, and whether there is another mount of it. The list of the mounts,
    /// which takes the longer to read the more volumes there are, is needed only if there is one.
    fn at_its_path(&self, done: &mut Unmounted) {
        let Some((directory, name)) = &self.file else { return };
        let Ok(node) = reach(directory, name.as_bytes(), OFlag::O_PATH) else { return };
        let Ok(inode) = Inode::of(&node) else { return };
        let is_node = inode.is_mounted && inode.kind == SFlag::S_IFBLK;
        if !is_node
            || self.number != Some(inode.device)
            || !watch::is_node_of(&self.identity, &inode)
            || !self.may_change()
        {
            return;
        }
        let point = self.identity.path().as_bytes();
        // What cannot be unmounted is reported with the list.
        if self.unmount(node, &inode, point, done).is_err() {
            return;
        }
        if let Err(left) = remove_empty(directory, name, point) {
            done.left.push(left);
        }
        done.has_ended = watch::is_referenced(&self.identity) == Some(false);
    }

    /// Returns where the root directory is.
    fn below_root(&self, done: &mut Unmounted) -> Result<Place> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = named::open("/", flags).map_err(Error::system("open", &"/"))?;
        self.below(&root, done)?;
        Ok(place(&root))
    }

    fn below(&self, root: &OwnedFd, done: &mut Unmounted) -> Result<()> {
        let mut foreign: Vec<u32> = Vec::new();
        for attempt in 1..=TRIES {
            let text = self.proc.mountinfo()?;
            let lines: Vec<_> = MountLine::all(&text).collect();
            let is_ours = |line: &&MountLine<'_>| {
                self.identity.is_shown_by(line) && !foreign.contains(&line.id)
            };
            let ours: Vec<_> = lines.iter().filter(is_ours).collect();
            if ours.is_empty() {
                return Ok(());
            }
            let is_last = attempt == TRIES || Instant::now() >= self.deadline;
            for line in ours {
                let stays = match self.step(root, line, &lines, done) {
                    Step::Progress => None,
                    Step::Unreached => is_last.then(|| UNREACHED.to_owned()),
                    Step::Foreign => {
                        foreign.push(line.id);
                        None
                    }
                    Step::Refused(errno) => {
                        foreign.push(line.id);
                        Some(format!("umount2: {errno}"))
                    }
                };
                // As the last of the roots shows it.
                done.mounts.retain(|(id, _)| *id != line.id);
                let left = |reason| (line.id, LeftBehind::new(shown(&line.point()), reason));
                done.mounts.extend(stays.map(left));
            }
            // A second call would not know the node any more.
            done.has_ended |= watch::is_referenced(&self.identity) == Some(false);
            if is_last || done.has_ended {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the request still waits for this.
    fn may_change(&self) -> bool {
        Instant::now() < self.deadline && check_awaited().is_ok()
    }

    fn step(
        &self,
        root: &OwnedFd,
        line: &MountLine<'_>,
        lines: &[MountLine<'_>],
        done: &mut Unmounted,
    ) -> Step {
        let point = line.point();
        let Ok((directory, node)) = reach_both(root, &point) else { return Step::Unreached };
        let Ok(inode) = Inode::of(&node) else { return Step::Unreached };
        if !self.may_change() {
            return Step::Unreached;
        }
        if inode.mount != u64::from(line.id) {
            if !is_over(lines, inode.mount, line.id) {
                return Step::Unreached;
            }
            return match self.proc.unmount(&node) {
                Ok(()) => Step::Progress,
                Err(_) => Step::Unreached,
            };
        }
        let is_node = inode.is_mounted && inode.kind == SFlag::S_IFBLK;
        if !is_node || self.number.is_some_and(|number| number != inode.device) {
            return Step::Foreign;
        }
        let file = self.file_below(&point);
        match self.unmount(node, &inode, &point, done) {
            Ok(()) => {}
            Err(errno) => return Step::Refused(errno),
        }
        if let Some(Err(left)) = file.map(|name| remove_empty(&directory, name, &point)) {
            done.left.push(left);
        }
        Step::Progress
    }

    /// Unmounts the node, which is ours. Its file system has ended then, if nothing else has it.
    fn unmount(
        &self,
        node: OwnedFd,
        inode: &Inode,
        point: &[u8],
        done: &mut Unmounted,
    ) -> Result<(), Errno> {
        done.options.get_or_insert(NodeOptions {
            uid: inode.uid,
            gid: inode.gid,
            mode: inode.permissions,
        });
        self.watch(&node, inode);
        // What was opened through this mount is opened; nothing more is.
        if let Err(errno) = mount::set_nodev(&node) {
            log::warn(format_args!(
                "the node at {} stays usable until it is unmounted: mount_setattr: {errno}",
                shown(point)
            ));
        }
        self.proc.unmount(&node)
    }

    /// The name of the file that the node is mounted over, if that is the one that was made for it.
    fn file_below(&self, point: &[u8]) -> Option<&str> {
        let (_, name) = self.file.as_ref()?;
        let found = Path::new(OsStr::from_bytes(point)).file_name()?;
        (found.as_bytes() == name.as_bytes()).then_some(name)
    }

    fn watch(&self, node: &OwnedFd, inode: &Inode) {
        let Some(container) = &self.watch_for else { return };
        match self.proc.path_of(node) {
            Ok(path) => watch::begin(&self.identity, container, Some(inode), path.as_c_str()),
            Err(errno) => log::warn(format_args!("a node cannot be watched: fchdir: {errno}")),
        }
    }
}

/// The mount and the inode of a directory; `None` if the kernel does not tell.
pub(crate) type Place = Option<(u64, u64)>;

pub(crate) fn place(directory: &OwnedFd) -> Place {
    Inode::of(directory).ok().map(|inode| (inode.mount, inode.number))
}

/// Opens the directory of a mount point, and through it what is mounted there: the container may
/// exchange directories at any time, and the two must belong together.
pub(crate) fn reach_both(root: &OwnedFd, point: &[u8]) -> Result<(OwnedFd, OwnedFd), Errno> {
    let path = Path::new(OsStr::from_bytes(point));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL);
    };
    let parent = parent.as_os_str().as_bytes();
    let directory = reach(root, parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let node = reach(&directory, name.as_bytes(), OFlag::O_PATH)?;
    Ok((directory, node))
}

/// Opens what is at a path of mountinfo. Such a path has no links.
fn reach(root: &OwnedFd, path: &[u8], flags: OFlag) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve);
    named::openat2(root, path, how)
}

/// Whether mount `upper` is on `lower`, or on another one that is.
pub(crate) fn is_over(lines: &[MountLine<'_>], upper: u64, lower: u32) -> bool {
    let mut next = u32::try_from(upper).ok();
    // No more steps than mounts: the list may have been read while it changed.
    for _ in lines {
        let Some(line) = lines.iter().find(|line| Some(line.id) == next) else { return false };
        if line.parent == lower {
            return true;
        }
        next = Some(line.parent);
    }
    false
}

/// Removes a file if it is as empty as ours was. Others may have put their own file there, such as
/// the host, where the file system is the host's.
pub(super) fn remove_empty(
    directory: &impl AsFd,
    name: &str,
    path: &[u8],
) -> Result<(), LeftBehind> {
    let failed = |call: &str, errno: Errno| {
        Err(LeftBehind::new(shown(path), format!("an empty file stays: {call}: {errno}")))
    };
    match Inode::synced_at(directory, name) {
        Ok(Some(file)) if file.kind == SFlag::S_IFREG && file.size == 0 && !file.is_mounted => {}
        Ok(_) => return Ok(()),
        Err(errno) => return failed("statx", errno),
    }
    match named::unlinkat(directory, name) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => failed("unlinkat", errno),
    }
}

/// A path of a container, for a message.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_over_another_is_recognized_by_its_parents() {
        let text = "36 35 0:44 / /dev rw - tmpfs t rw\n40 36 0:45 /n /dev/x rw - tmpfs t rw\n\
                    41 40 0:5 /null /dev/x rw - devtmpfs t rw\n42 41 0:5 /zero /dev/x rw - devtmpfs t rw";
        let lines: Vec<_> = MountLine::all(text.as_ref()).collect();
        assert!(is_over(&lines, 41, 40) && is_over(&lines, 42, 40));
        assert!(!is_over(&lines, 40, 40) && !is_over(&lines, 36, 40) && !is_over(&lines, 7, 40));
        assert!(!is_over(&lines, u64::MAX, 40));
    }
}
