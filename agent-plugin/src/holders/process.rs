//! Processes and their descriptors:
//! [`/proc/PID/fd`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html),
//! [`comm`](https://man7.org/linux/man-pages/man5/proc_pid_comm.5.html),
//! [`cgroup`](https://man7.org/linux/man-pages/man7/cgroups.7.html).
//!
//! A descriptor is recognized by its device number, so that a node which the container made itself
//! is found as well as ours.
//!
//! A process may have very many descriptors, and a user very many such processes. So the tables are
//! looked at in passes, a part of each in every pass: those with few descriptors are done first,
//! whoever has many.

use std::{
    collections::VecDeque,
    ffi::{CString, OsStr},
    fs,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    time::Instant,
};

use nix::sys::stat::{SFlag, fstat};

use super::{
    disk::Disk,
    found::{Found, LONGEST_NAME, Trace},
    scan::Budget,
    table::Table,
    task::{Task, further_tables, with_threads},
};
use crate::{
    block::DeviceNumber,
    holder::{Holder, HolderKind},
    inode::Inode,
    kernel_file,
    namespace::Target,
    procfs::cgroup::device_group,
    sorted,
    text::{displayed, readable},
};

/// How many descriptors of each table the first pass looks at. Each further pass looks at more by
/// the factor.
const FIRST_PASS: usize = 64;
const FACTOR: usize = 8;

/// What is left to look at.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// The descriptors of a table from `next` on, in this pass about as many as `share`.
    Table { task: Task, next: u32, share: usize },
    /// Which further tables the threads of a process have.
    Threads { pid: u32 },
}

/// Finds the processes among `pids` that have one of `disks` open, each once per disk.
pub(super) fn openers(
    pids: &[u32],
    disks: &[Disk],
    containers: &[&Target],
    budget: &mut Budget,
) -> Vec<Found> {
    let mut openers = Openers { disks, containers, found: Vec::new(), known: Vec::new() };
    // Whatever is not finished goes to the end, behind the rest of its pass.
    let mut left = VecDeque::with_capacity(pids.len());
    for &pid in pids {
        left.push_back(table(Task::first(pid)));
    }
    for pid in with_threads(pids, budget) {
        left.push_back(Work::Threads { pid });
    }
    while let Some(work) = left.pop_front() {
        if !budget.is_left() {
            break;
        }
        match work {
            Work::Table { task, next, share } => {
                let unfinished = openers.look_at(task, next, share, budget);
                let share = share * FACTOR;
                if let Some(next) = unfinished {
                    left.push_back(Work::Table { task, next, share });
                }
            }
            Work::Threads { pid } => {
                let began = Instant::now();
                for task in further_tables(pid, budget) {
                    left.push_back(table(task));
                }
                budget.spend(pid, began, 0);
            }
        }
    }
    openers.found
}

fn table(task: Task) -> Work {
    Work::Table { task, next: 0, share: FIRST_PASS }
}

struct Openers<'a> {
    disks: &'a [Disk],
    containers: &'a [&'a Target],
    found: Vec<Found>,
    /// Processes that were found, and which of the disks they have open.
    known: Vec<(u32, usize)>,
}

impl Openers<'_> {
    /// Looks at a part of a table. Returns where the rest begins.
    fn look_at(&mut self, task: Task, next: u32, share: usize, budget: &mut Budget) -> Option<u32> {
        let began = Instant::now();
        // The process has ended, and its descriptors are closed.
        let mut table = Table::open(task, next).ok()?;
        let (mut seen, mut rest) = (0, None);
        loop {
            let descriptors = table.read();
            let Some(last) = descriptors.last() else { break };
            seen += descriptors.len();
            rest = last.checked_add(1);
            descriptors.iter().for_each(|descriptor| self.look_at_one(task, *descriptor));
            if seen >= share || !budget.is_left() {
                break;
            }
            rest = None;
        }
        budget.spend(task.pid, began, seen);
        rest
    }

    fn look_at_one(&mut self, task: Task, descriptor: u32) {
        let path = PathBuf::from(task.file(&format!("fd/{descriptor}")));
        let Some(found) = inode(&path) else { return };
        let is_of = |disk: &Disk| match found.kind {
            SFlag::S_IFBLK => disk.has(found.device),
            _ => disk.has_files_of(found.file_system),
        };
        let Some(index) = self.disks.iter().position(is_of) else { return };
        if sorted::insert(&mut self.known, (task.pid, index)) {
            self.found.push(opener(&self.disks[index], task.pid, (path, found), self.containers));
        }
    }
}

fn opener(
    disk: &Disk,
    pid: u32,
    (descriptor, inode): (PathBuf, Inode),
    containers: &[&Target],
) -> Found {
    let name = fs::read_link(&descriptor).unwrap_or_default();
    let name = name.as_os_str().as_bytes();
    // The node was removed by us.
    let name = match name {
        // The root of a mount that was removed, which has no path any more.
        b"/" => disk.path.as_bytes(),
        name => name.strip_suffix(b" (deleted)").unwrap_or(name),
    };
    let name = readable(name, LONGEST_NAME);
    let trace = Trace::Descriptor(descriptor, inode);
    let mut opener = Found::new(disk, HolderKind::Process, name, trace);
    identify(&mut opener.holder, pid, containers);
    opener
}

/// Fills in the process of a holder, and the container that the process is in.
pub(super) fn identify(holder: &mut Holder, pid: u32, containers: &[&Target]) {
    holder.pid = pid;
    holder.command = command(pid);
    holder.container_id = container(pid, containers);
}

/// What `path` leads to.
pub(super) fn inode(path: &Path) -> Option<Inode> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    Inode::followed(&path).ok()
}

/// The block device that `path` leads to; `None` for everything else.
pub(super) fn block_device(path: &Path) -> Option<DeviceNumber> {
    let found = inode(path)?;
    (found.kind == SFlag::S_IFBLK).then_some(found.device)
}

/// The name of a process; empty where it has ended.
pub(super) fn command(pid: u32) -> String {
    let name = kernel_file::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    // The kernel adds the last newline; others belong to the name.
    readable(name.strip_suffix(b"\n").unwrap_or(&name), LONGEST_NAME)
}

/// The container that a process is in: one of `containers`, or the name of its cgroup if that is a
/// container id.
pub(super) fn container(pid: u32, containers: &[&Target]) -> String {
    let cgroups = kernel_file::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let cgroup = device_group(&cgroups).unwrap_or(Path::new(""));
    let namespace = Task::first(pid).mount_namespace().ok();
    let is_in = |target: &&&Target| {
        let own = fstat(target.container.mount_namespace.as_fd()).ok().map(|stat| stat.st_ino);
        (own.is_some() && own == namespace) || is_below(cgroup, &target.container.cgroup)
    };
    match containers.iter().find(is_in) {
        Some(target) => displayed(&target.id),
        None => id_of(cgroup).to_owned(),
    }
}

fn is_below(cgroup: &Path, container: &Path) -> bool {
    // Every process would be in a container of the root group.
    container.parent().is_some() && cgroup.starts_with(container)
}

/// The last component of a cgroup's path, if it has the form that runtimes give to a container's
/// id: 12 to 128 hexadecimal digits, possibly with systemd's prefix and suffix.
fn id_of(cgroup: &Path) -> &str {
    let last = cgroup.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let last = last.strip_suffix(".scope").unwrap_or(last);
    let last = last.rsplit([':', '-']).next().unwrap_or_default();
    let is_id =
        (12..=128).contains(&last.len()) && last.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { last } else { "" }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
