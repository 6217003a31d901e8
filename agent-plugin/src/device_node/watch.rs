//! Whether a node that was removed can still be opened through something that refers to it: a copy
//! of its mount in another namespace or in none, or a descriptor (`O_PATH`) in a process or in
//! transit in a socket. While there is such a reference and no device filter protects the device
//! number, the number must not be given to another disk.
//!
//! The kernel says when the last one is gone. Each bind node is alone on its file system, so that
//! this is the end of the file system:
//! [inotify(7)](https://man7.org/linux/man-pages/man7/inotify.7.html) reports `IN_UNMOUNT` for the
//! node's inode. The event is in the queue before the call returns that gave up the last reference.
//! A watch is itself no such reference.
//!
//! The watch begins when the node is made, so that the answer is known whatever the container does
//! with the node, and also after the container's end. A node that was removed and can still be
//! opened costs a descriptor: its disk, held open, keeps the number although the disk is deleted.
//! Nothing waits: the events are read when a request begins and when it ends.
//!
//! `IN_DELETE_SELF` would be no proof for a mknod node: it comes with the last link, also while a
//! descriptor that was opened through an earlier link is still there.

use std::{
    fs::{self, File},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    NixPath,
    errno::Errno,
    fcntl::OFlag,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};

use super::identity::Identity;
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    inode::Inode,
    log,
    node::open_block_device,
};

/// At most so many nodes of one container that were removed may still be in use before it gets no
/// further volume. Each costs a descriptor of the agent and a deleted disk of the kernel. A limit
/// for all containers would let one of them deny volumes to the others.
pub(super) const MOST_KEPT: usize = 64;

/// A device number belongs to the whole guest, so this is not a part of one service.
static WATCHES: Mutex<Watches> = Mutex::new(Watches { inotify: None, nodes: Vec::new() });

#[derive(Debug)]
struct Watches {
    /// Exists while there is a node to watch.
    inotify: Option<Inotify>,
    nodes: Vec<Node>,
}

/// A node of a container without a device filter.
#[derive(Debug)]
struct Node {
    identity: Identity,
    container: String,
    /// `None`: it cannot be watched, and is in use until the guest ends.
    watch: Option<WatchDescriptor>,
    /// The numbers of its file system and its inode, which are not another's while it is watched.
    inode: Option<(DeviceNumber, u64)>,
    /// The disk of a node that was removed.
    disk: Option<File>,
}

/// What became of a node that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum References {
    /// There are none, or a device filter protects the number.
    None,
    /// It may still be opened. The number is kept until that has ended.
    Watched,
    /// The same, and the kernel will not say when that has ended.
    Unknown,
}

/// Reads the events, and gives up the numbers of nodes that nothing refers to any more.
pub fn sweep() {
    lock().sweep();
}

/// Watches a node of a container that has no device filter. `file` leads to it.
pub(super) fn begin<P: NixPath + ?Sized>(
    identity: &Identity,
    container: &str,
    inode: Option<&Inode>,
    file: &P,
) {
    let mut watches = lock();
    let watch = watches.add(file);
    if let Err(errno) = watch {
        // The container may have used up what its user may have of these.
        log::warn(format_args!(
            "a node of {} cannot be watched: inotify: {errno}",
            identity.source()
        ));
    }
    let watch = watch.ok();
    // The same node again.
    if watch.is_some() && watches.nodes.iter().any(|node| node.watch == watch) {
        return;
    }
    let (identity, container) = (identity.clone(), container.to_owned());
    let inode = inode.map(|inode| (inode.file_system, inode.number));
    watches.nodes.push(Node { identity, container, watch, inode, disk: None });
}

/// Whether an inode is a node of this attachment that is watched. It is compared with the kernel's
/// numbers, and the file is not opened or asked: whatever it is.
pub(super) fn is_node_of(identity: &Identity, inode: &Inode) -> bool {
    let mut watches = lock();
    // The number of a file system that has ended is free only after its event.
    watches.sweep();
    let found = Some((inode.file_system, inode.number));
    watches.of(identity).any(|node| node.watch.is_some() && node.inode == found)
}

/// Whether something still refers to a node of this attachment. `None`: it was never watched.
pub(super) fn is_referenced(identity: &Identity) -> Option<bool> {
    let mut watches = lock();
    let was_known = watches.of(identity).next().is_some();
    watches.sweep();
    was_known.then(|| watches.of(identity).next().is_some())
}

/// Keeps the number of a node that was removed, for as long as something refers to it. Must be
/// called before the disk is deleted. An error is logged: it must not end what removes the node.
pub(super) fn keep(identity: &Identity, number: Option<DeviceNumber>) -> References {
    let mut watches = lock();
    watches.sweep();
    let mut references = References::None;
    for node in watches.of(identity) {
        if node.disk.is_none() {
            node.disk = number.and_then(|number| open_disk(identity, number));
        }
        match node.watch {
            None => references = References::Unknown,
            Some(_) if references == References::None => references = References::Watched,
            Some(_) => {}
        }
    }
    references
}

/// As [`keep`], for a node that was not watched and cannot be.
pub(super) fn keep_unwatched(
    identity: &Identity,
    container: &str,
    number: DeviceNumber,
) -> References {
    let (disk, container) = (open_disk(identity, number), container.to_owned());
    let (identity, watch, inode) = (identity.clone(), None, None);
    lock().nodes.push(Node { identity, container, watch, inode, disk });
    References::Unknown
}

/// Gives up what is kept for nodes of an attachment whose disk stays: its number is not free.
pub(super) fn keep_none(identity: &Identity) {
    let mut watches = lock();
    watches.nodes.retain(|node| node.identity != *identity || node.watch.is_some());
    watches.of(identity).for_each(|node| node.disk = None);
}

/// How many numbers are kept because of nodes of this container.
pub(super) fn kept(container: &str) -> usize {
    let is_kept = |node: &&Node| node.container == container && node.disk.is_some();
    lock().nodes.iter().filter(is_kept).count()
}

/// Every change is complete under the lock.
fn lock() -> MutexGuard<'static, Watches> {
    WATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watches {
    fn add<P: NixPath + ?Sized>(&mut self, file: &P) -> Result<WatchDescriptor, Errno> {
        let inotify = match self.inotify.take() {
            Some(inotify) => inotify,
            None => Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
        };
        // IN_UNMOUNT is always reported.
        self.inotify.insert(inotify).add_watch(file, AddWatchFlags::IN_DELETE_SELF)
    }

    fn of(&mut self, identity: &Identity) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut().filter(move |node| node.identity == *identity)
    }

    fn sweep(&mut self) {
        while let Some(Ok(events)) = self.inotify.as_ref().map(Inotify::read_events) {
            for event in
                events.iter().filter(|event| event.mask.contains(AddWatchFlags::IN_UNMOUNT))
            {
                self.nodes.retain(|node| node.watch != Some(event.wd));
            }
        }
        if self.nodes.iter().all(|node| node.watch.is_none()) {
            self.inotify = None;
        }
    }
}

/// Opens a disk. It need not be ready, and cannot be read any more once it is deleted.
fn open_disk(identity: &Identity, number: DeviceNumber) -> Option<File> {
    let opened = try_open_disk(number);
    match &opened {
        Ok(_) => log::info(format_args!(
            "something still refers to a node of {} that was removed: the number {number} is kept",
            identity.source()
        )),
        Err(error) => log::warn(format_args!(
            "the number {number} of {} may be used for another disk while something refers to it: {}",
            identity.source(),
            error.message()
        )),
    }
    opened.ok()
}

fn try_open_disk(number: DeviceNumber) -> Result<File> {
    let link = format!("/sys/dev/block/{number}");
    let target = fs::read_link(&link).map_err(Error::system("readlink", &link))?;
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let opened = open_block_device(&name, number, OFlag::O_RDONLY);
    opened.map_err(|errno| Error::system("open", &name)(errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device_node::NodePath;

    #[test]
    fn a_node_is_known_by_its_inode_while_it_is_watched() {
        let directory = tempfile::tempdir().unwrap();
        let identity = |path: &str| Identity::new("s", "known", &NodePath::new(path).unwrap());
        let file = |name: &str| {
            let path = directory.path().join(name);
            let inode = Inode::of(&File::create_new(&path).unwrap()).unwrap();
            (path, inode)
        };
        let ((path, inode), (_, other)) = (file("node"), file("other"));
        let ours = identity("/dev/x");
        assert!(!is_node_of(&ours, &inode));
        begin(&ours, "known", Some(&inode), &path);
        assert!(is_node_of(&ours, &inode));
        assert!(!is_node_of(&ours, &other) && !is_node_of(&identity("/dev/y"), &inode));

        // One that cannot be watched may have ended, and its inode be another file's.
        let lost = identity("/dev/z");
        begin(&lost, "known", Some(&other), &directory.path().join("gone"));
        assert!(!is_node_of(&lost, &other));
    }
}
