//! Copies of a bind node in other mount namespaces: a process of the container may have made one
//! (`unshare -Urm`).
//!
//! Each namespace is found by a process or thread that is in it
//! ([`/proc/PID/task/TID/ns/mnt`](https://man7.org/linux/man-pages/man7/namespaces.7.html)), and
//! entered only if its mountinfo shows the node. A namespace that only a descriptor or a mount
//! keeps is not found, nor is a mount that is in no namespace. Those are what `watch` is for.

use std::{
    collections::HashSet,
    ffi::CString,
    fs::{self, File},
    os::fd::OwnedFd,
    sync::Arc,
    time::Instant,
};

use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns, unshare},
    sys::stat::Mode,
};

use super::{identity::Identity, unmount::Unmount};
use crate::{
    error::{Error, Result},
    inode::Inode,
    namespace::NamespaceTask,
    procfs::mountinfo::MountLine,
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
    unmount: impl Fn(Instant) -> Result<Unmount>,
) {
    let now = Instant::now();
    let end = now + deadline.saturating_duration_since(now) / 2;
    let mut known = HashSet::new();
    let places = tasks().map(|task| place(&task, identity, &mut known));
    for place in own_namespaces().map(Some).chain(places) {
        if Instant::now() >= end {
            tracing::warn!("copies of {} may be left: the search took too long", identity.source());
            return;
        }
        let Some(place) = place else { continue };
        let entered = unmount(end).and_then(|unmount| {
            let enter = move || {
                enter(&place)?;
                unmount.run(place.root.as_slice())
            };
            NamespaceTask::start(container, enter, drop)?.finish(end)
        });
        match entered {
            Ok(done) => {
                for left in done.left {
                    tracing::info!(
                        "a copy of {} stays at {} of another namespace, nodev: {}",
                        identity.source(),
                        left.path,
                        left.reason
                    );
                }
            }
            Err(error) => {
                tracing::warn!("a copy of {} is left: {}", identity.source(), error.message())
            }
        }
    }
}

/// The directories in `/proc` of all threads but our own.
fn tasks() -> impl Iterator<Item = String> {
    let names = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
    };
    let own = std::process::id();
    names("/proc").filter(move |pid| *pid != own).flat_map(move |pid| {
        let directory = format!("/proc/{pid}/task");
        names(&directory).map(move |tid| format!("{directory}/{tid}"))
    })
}

/// Opens the namespace and the root of a thread, if the two are not among `known` and show the
/// node. Whatever disappears in the meantime is no place.
fn place(task: &str, identity: &Identity, known: &mut HashSet<(u64, u64, u64)>) -> Option<Place> {
    let stat = |name: &str| Inode::followed(&CString::new(format!("{task}/{name}")).ok()?).ok();
    let (namespace, root) = (stat("ns/mnt")?, stat("root")?);
    if !known.insert((namespace.number, root.mount, root.number)) {
        return None;
    }
    let text = fs::read(format!("{task}/mountinfo")).ok()?;
    if !MountLine::all(&text).any(|line| identity.is_shown_by(&line)) {
        return None;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(format!("{task}/root").as_str(), flags, Mode::empty()).ok()?;
    Some(Place { namespace: File::open(format!("{task}/ns/mnt")).ok()?, root: Some(root) })
}

/// The namespaces of containers that ended, as far as the agent still holds them.
fn own_namespaces() -> impl Iterator<Item = Place> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let path = entry.path();
        let link = fs::read_link(&path).ok()?;
        link.to_str()?.strip_prefix("mnt:[")?;
        Some(Place { namespace: File::open(path).ok()?, root: None })
    })
}

/// Moves the calling thread into the namespace, for good.
fn enter(place: &Place) -> Result<()> {
    unshare(CloneFlags::CLONE_FS).map_err(Error::system("unshare", "CLONE_FS"))?;
    setns(&place.namespace, CloneFlags::CLONE_NEWNS)
        .map_err(Error::system("setns", "the mount namespace of a copy"))
}
