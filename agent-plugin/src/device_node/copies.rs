//! Copies of a bind node in other mount namespaces: a process of the container may have made one
//! (`unshare -Urm`).
//!
//! Each namespace is found by a process or thread that is in it
//! ([`/proc/PID/task/TID/ns/mnt`](https://man7.org/linux/man-pages/man7/namespaces.7.html)), and
//! entered only if its mountinfo shows the node. A namespace that only a descriptor or a mount
//! keeps is not found, nor is a mount that is in no namespace. Those are what `watch` is for.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    sync::Arc,
    time::Instant,
};

use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns, unshare},
};

use super::{
    identity::Identity,
    unmount::{Unmount, Unmounted},
};
use crate::{
    error::{Error, Result},
    inode::Inode,
    log,
    named::{self, c_name},
    namespace::NamespaceTask,
    procfs::{mountinfo::MountLine, numbers},
    sorted,
};

/// Where a copy may be: a namespace, and the root directory of a process in it.
struct Place {
    namespace: File,
    root: Option<OwnedFd>,
}

/// Makes every copy that is found `nodev` and unmounts it, in at most half of the time that
/// remains. Errors are logged: the container has made these mounts. `unmount` returns what to do in
/// one namespace, by a deadline.
pub(super) fn remove(
    container: &Arc<str>,
    identity: &Identity,
    deadline: Instant,
    unmount: &dyn Fn(Instant) -> Result<Unmount>,
) {
    let now = Instant::now();
    let end = now + deadline.saturating_duration_since(now) / 2;
    let mut search = Search { container, identity, end, unmount, known: Vec::new() };
    if search.all().is_none() {
        log::warn(format_args!(
            "copies of {} may be left: the search took too long",
            identity.source()
        ));
    }
}

struct Search<'a> {
    container: &'a Arc<str>,
    identity: &'a Identity,
    end: Instant,
    unmount: &'a dyn Fn(Instant) -> Result<Unmount>,
    /// Namespaces, each with a root directory, that were looked at.
    known: Vec<(u64, u64, u64)>,
}

impl Search<'_> {
    /// Looks at every place. `None`: there was not enough time.
    fn all(&mut self) -> Option<()> {
        // The namespaces of containers that ended, as far as the agent still holds them.
        for descriptor in numbers("/proc/self/fd").unwrap_or_default() {
            self.visit(own_namespace(descriptor))?;
        }
        let own = std::process::id();
        for pid in numbers("/proc").unwrap_or_default().into_iter().filter(|pid| *pid != own) {
            let directory = format!("/proc/{pid}/task");
            for tid in numbers(&directory).unwrap_or_default() {
                let place = self.place(&format!("{directory}/{tid}"));
                self.visit(place)?;
            }
        }
        Some(())
    }

    /// Removes the copy in a place. `None`: the time is over.
    fn visit(&self, place: Option<Place>) -> Option<()> {
        if Instant::now() >= self.end {
            return None;
        }
        let Some(place) = place else { return Some(()) };
        let source = self.identity.source();
        match self.remove_from(place) {
            Ok(done) => {
                for left in done.left {
                    log::info(format_args!(
                        "a copy of {source} stays at {} of another namespace, nodev: {}",
                        left.path, left.reason
                    ));
                }
            }
            Err(error) => {
                log::warn(format_args!("a copy of {source} is left: {}", error.message()))
            }
        }
        Some(())
    }

    fn remove_from(&self, place: Place) -> Result<Unmounted> {
        let unmount = (self.unmount)(self.end)?;
        let enter = move || {
            enter(&place)?;
            unmount.run(place.root.as_slice())
        };
        NamespaceTask::start(self.container, enter)?.finish(self.end)
    }

    /// Opens the namespace and the root of a thread, if the two are not known and show the node.
    /// Whatever disappears in the meantime is no place.
    fn place(&mut self, task: &str) -> Option<Place> {
        let (namespace, root) = (stat(task, "ns/mnt")?, stat(task, "root")?);
        let seen = (namespace.number, root.mount, root.number);
        if !sorted::insert(&mut self.known, seen) {
            return None;
        }
        let text = fs::read(format!("{task}/mountinfo")).ok()?;
        if !MountLine::all(&text).any(|line| self.identity.is_shown_by(&line)) {
            return None;
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = named::open(&format!("{task}/root"), flags).ok()?;
        Some(Place { namespace: File::open(format!("{task}/ns/mnt")).ok()?, root: Some(root) })
    }
}

fn stat(task: &str, name: &str) -> Option<Inode> {
    Inode::followed(&c_name(format!("{task}/{name}").as_bytes()).ok()?).ok()
}

/// The mount namespace that a descriptor of the agent refers to, if it does.
fn own_namespace(descriptor: u32) -> Option<Place> {
    let path = format!("/proc/self/fd/{descriptor}");
    fs::read_link(&path).ok()?.to_str()?.strip_prefix("mnt:[")?;
    Some(Place { namespace: File::open(path).ok()?, root: None })
}

/// Moves the calling thread into the namespace, for good.
fn enter(place: &Place) -> Result<()> {
    unshare(CloneFlags::CLONE_FS).map_err(Error::system("unshare", &"CLONE_FS"))?;
    setns(&place.namespace, CloneFlags::CLONE_NEWNS)
        .map_err(Error::system("setns", &"the mount namespace of a copy"))
}
