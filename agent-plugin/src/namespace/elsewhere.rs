//! Other mount namespaces than a container's own, where a process of it may have copies of mounts
//! (`unshare -Urm`).
//!
//! Each namespace is found by a process or thread that is in it
//! ([`/proc/PID/task/TID/ns/mnt`](https://man7.org/linux/man-pages/man7/namespaces.7.html)), and
//! is of interest only if its mountinfo shows such a mount. A namespace that only a descriptor or a
//! mount keeps is not found, nor is a mount that is in no namespace.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    time::Instant,
};

use nix::{
    fcntl::OFlag,
    sched::{CloneFlags, setns, unshare},
};

use crate::{
    error::{Error, Result},
    inode::Inode,
    kernel_file,
    named::{self, c_name},
    procfs::{mountinfo::MountLine, numbers},
    sorted,
};

/// A namespace, and the root directory of a process in it.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    namespace: File,
    pub(crate) root: Option<OwnedFd>,
}

impl Elsewhere {
    /// Calls `act` for each place whose mountinfo has a line that `shows` it, and for the
    /// namespaces that the agent itself still holds. `false`: there was not enough time.
    pub(crate) fn each(
        end: Instant,
        shows: &dyn Fn(&MountLine<'_>) -> bool,
        act: &mut dyn FnMut(Elsewhere),
    ) -> bool {
        Search { end, shows, act, known: Vec::new() }.all().is_some()
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_FS).map_err(Error::system("unshare", &"CLONE_FS"))?;
        setns(&self.namespace, CloneFlags::CLONE_NEWNS)
            .map_err(Error::system("setns", &"the mount namespace of a copy"))
    }
}

struct Search<'a> {
    end: Instant,
    shows: &'a dyn Fn(&MountLine<'_>) -> bool,
    act: &'a mut dyn FnMut(Elsewhere),
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

    fn visit(&mut self, place: Option<Elsewhere>) -> Option<()> {
        if Instant::now() >= self.end {
            return None;
        }
        if let Some(place) = place {
            (self.act)(place);
        }
        Some(())
    }

    /// Opens the namespace and the root of a thread, if the two are not known and show the mount.
    /// Whatever disappears in the meantime is no place.
    fn place(&mut self, task: &str) -> Option<Elsewhere> {
        let (namespace, root) = (stat(task, "ns/mnt")?, stat(task, "root")?);
        let seen = (namespace.number, root.mount, root.number);
        if !sorted::insert(&mut self.known, seen) {
            return None;
        }
        let text = kernel_file::read(format!("{task}/mountinfo")).ok()?;
        if !MountLine::all(&text).any(|line| (self.shows)(&line)) {
            return None;
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = named::open(&format!("{task}/root"), flags).ok()?;
        Some(Elsewhere { namespace: File::open(format!("{task}/ns/mnt")).ok()?, root: Some(root) })
    }
}

fn stat(task: &str, name: &str) -> Option<Inode> {
    Inode::followed(&c_name(format!("{task}/{name}").as_bytes()).ok()?).ok()
}

/// The mount namespace that a descriptor of the agent refers to, if it does.
fn own_namespace(descriptor: u32) -> Option<Elsewhere> {
    let path = format!("/proc/self/fd/{descriptor}");
    fs::read_link(&path).ok()?.to_str()?.strip_prefix("mnt:[")?;
    Some(Elsewhere { namespace: File::open(path).ok()?, root: None })
}
