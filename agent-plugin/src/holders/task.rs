//! Processes and their threads: [`/proc/PID/task`](https://man7.org/linux/man-pages/man5/proc_pid_task.5.html).
//!
//! A thread shares descriptors and mounts with its process unless it called
//! [`unshare`](https://man7.org/linux/man-pages/man2/unshare.2.html): `CLONE_FILES` needs no
//! privilege. Whether two threads have the same descriptors is what
//! [`kcmp`](https://man7.org/linux/man-pages/man2/kcmp.2.html) tells; in a kernel without it
//! (`CONFIG_KCMP`) every thread counts.

use std::{cmp::Ordering, collections::BinaryHeap, fs, io, os::unix::fs::MetadataExt as _};

use nix::errno::Errno;

use super::scan::Budget;
use crate::{
    error::{Error, Result},
    kernel_file,
    procfs::{numbers, stat::is_kernel_thread},
    text::{decimal, words},
};

/// A thread of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) pid: u32,
    pub(super) tid: u32,
}

impl Task {
    /// The first thread of a process.
    pub(super) fn first(pid: u32) -> Task {
        Task { pid, tid: pid }
    }

    /// Whether it is the process itself.
    pub(super) fn is_first(self) -> bool {
        self.pid == self.tid
    }

    /// One of its files in `/proc`.
    pub(super) fn file(self, name: &str) -> String {
        let Task { pid, tid } = self;
        if self.is_first() {
            format!("/proc/{pid}/{name}")
        } else {
            format!("/proc/{pid}/task/{tid}/{name}")
        }
    }

    /// The inode number of its mount namespace.
    pub(super) fn mount_namespace(self) -> io::Result<u64> {
        fs::metadata(self.file("ns/mnt")).map(|namespace| namespace.ino())
    }
}

/// Returns every process but the agent. Kernel threads have no descriptors, and are left out where
/// that is cheap.
pub(super) fn processes() -> Result<Vec<u32>> {
    let own = std::process::id();
    let threads = kernel_threads();
    let mut pids = numbers("/proc").map_err(Error::system("readdir", &"/proc"))?;
    pids.retain(|pid| *pid != own && !threads.contains(pid));
    Ok(pids)
}

/// Tries whether the kernel can compare tables of descriptors.
pub(crate) fn try_kcmp() -> Result<(), Errno> {
    let own = std::process::id();
    compare_tables(own, own).map(drop)
}

/// The children of kthreadd, where that is process 2. They include the few programs that the kernel
/// starts by itself, which end soon.
fn kernel_threads() -> Vec<u32> {
    let stat = kernel_file::read("/proc/2/stat").unwrap_or_default();
    if !is_kernel_thread(&stat) {
        return Vec::new();
    }
    let children = kernel_file::read("/proc/2/task/2/children").unwrap_or_default();
    let mut threads = vec![2];
    for word in words(&children) {
        threads.extend(decimal::<u32>(word));
    }
    threads
}

/// Those of the processes that have several threads, first those that have the fewest. A kernel
/// that does not count them is asked for the threads of each.
pub(super) fn with_threads(pids: &[u32], budget: &mut Budget) -> Vec<u32> {
    let mut counted = Vec::new();
    for &pid in pids {
        if !budget.is_left() {
            break;
        }
        // Two links, and one for each thread.
        let links = fs::metadata(format!("/proc/{pid}/task")).map(|task| task.nlink());
        counted.extend(links.ok().filter(|links| *links != 3).map(|links| (links, pid)));
    }
    // A heap sorts as well, with less code.
    let ordered = BinaryHeap::from(counted).into_sorted_vec();
    let mut pids = Vec::with_capacity(ordered.len());
    for (_, pid) in ordered {
        pids.push(pid);
    }
    pids
}

/// The threads of a process but its first one. None where it has ended.
pub(super) fn further_threads(pid: u32) -> impl Iterator<Item = Task> {
    let tids = numbers(&format!("/proc/{pid}/task")).unwrap_or_default().into_iter();
    tids.filter(move |tid| *tid != pid).map(move |tid| Task { pid, tid })
}

/// The threads of a process with a table of descriptors that is not that of its first thread, one
/// for each table. The first thread may have ended, and has none then.
pub(super) fn further_tables(pid: u32, budget: &mut Budget) -> Vec<Task> {
    tables_by(Task::first(pid), further_threads(pid), budget, compare_tables)
}

fn tables_by(
    first: Task,
    threads: impl Iterator<Item = Task>,
    budget: &mut Budget,
    compare: impl Fn(u32, u32) -> Result<Ordering, Errno>,
) -> Vec<Task> {
    // Ordered as the kernel compares them, so that a thread is compared with few of many.
    let mut known = vec![first];
    let mut unknown = Vec::new();
    for task in threads {
        if !budget.is_left() {
            break;
        }
        match place(&known, task, &compare) {
            Ok(Ok(_)) => {}
            Ok(Err(at)) => known.insert(at, task),
            // Ended: this thread, or the one that it was compared with.
            Err(Errno::ESRCH) if !exists(task) => {}
            Err(_) => unknown.push(task),
        }
    }
    known.retain(|task| *task != first);
    known.append(&mut unknown);
    known
}

fn exists(task: Task) -> bool {
    fs::symlink_metadata(task.file("")).is_ok()
}

/// Where `task` is in an ordered list of tables, or would be.
fn place(
    known: &[Task],
    task: Task,
    compare: &impl Fn(u32, u32) -> Result<Ordering, Errno>,
) -> Result<Result<usize, usize>, Errno> {
    let mut failed = Ok(());
    let place = known.binary_search_by(|known| {
        compare(known.tid, task.tid).unwrap_or_else(|errno| {
            failed = Err(errno);
            Ordering::Equal
        })
    });
    failed.map(|()| place)
}

/// Compares the tables of descriptors of two threads. The order lasts until the next boot.
#[expect(unsafe_code, reason = "kcmp(2) has no wrapper in libc or nix")]
fn compare_tables(one: u32, other: u32) -> Result<Ordering, Errno> {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: only numbers are passed.
    let result = unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0, 0) };
    match Errno::result(result)? {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        // Not equal, and the kernel has no order.
        _ => Err(Errno::EOPNOTSUPP),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Barrier,
        thread,
        time::{Duration, Instant},
    };

    use nix::{
        sched::{CloneFlags, unshare},
        unistd::gettid,
    };

    use super::*;

    fn budget() -> Budget {
        Budget::until(Instant::now() + Duration::from_secs(60))
    }

    fn own_tid() -> u32 {
        gettid().as_raw().cast_unsigned()
    }

    /// Runs `work` while this process has a thread that shares its descriptors and one with a
    /// table of its own; `work` gets both.
    fn with_two_threads(work: impl FnOnce(u32, u32)) {
        let (ready, done) = (Barrier::new(3), Barrier::new(3));
        let (sender, tids) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            for own_table in [false, true] {
                let (sender, ready, done) = (sender.clone(), &ready, &done);
                scope.spawn(move || {
                    if own_table {
                        unshare(CloneFlags::CLONE_FILES).unwrap();
                    }
                    sender.send((own_table, own_tid())).unwrap();
                    ready.wait();
                    done.wait();
                });
            }
            ready.wait();
            let mut tids: Vec<_> = tids.iter().take(2).collect();
            tids.sort_unstable();
            work(tids[0].1, tids[1].1);
            done.wait();
        });
    }

    #[test]
    fn a_thread_with_a_table_of_its_own_is_one_more_table() {
        with_two_threads(|shared, own| {
            let pid = std::process::id();
            assert_eq!(with_threads(&[pid], &mut budget()), [pid]);
            assert!(further_threads(pid).any(|task| task.tid == shared));
            let found = further_tables(pid, &mut budget());
            assert!(found.contains(&Task { pid, tid: own }), "{found:?}");
            assert!(!found.contains(&Task { pid, tid: shared }), "{found:?}");
        });
    }

    #[test]
    fn a_process_with_one_thread_is_not_asked_for_more() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = with_threads(&[child.id()], &mut budget());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.is_empty(), "{found:?}");
    }

    fn numbered(tids: std::ops::Range<u32>) -> impl Iterator<Item = Task> {
        tids.map(|tid| Task { pid: 1, tid })
    }

    #[test]
    fn without_kcmp_every_thread_is_a_table() {
        let refuse = |_, _| Err(Errno::ENOSYS);
        let found = tables_by(Task::first(1), numbered(2..5), &mut budget(), refuse);
        assert_eq!(found, numbered(2..5).collect::<Vec<_>>());
    }

    #[test]
    fn a_table_that_several_threads_share_is_one() {
        let compare = |one: u32, other: u32| Ok((one % 3).cmp(&(other % 3)));
        let found = tables_by(Task::first(1), numbered(2..10), &mut budget(), compare);
        let mut tids: Vec<_> = found.iter().map(|task| task.tid).collect();
        tids.sort_unstable();
        assert_eq!(tids, [2, 3]);
    }

    #[test]
    fn without_time_nothing_is_looked_at() {
        let mut over = Budget::until(Instant::now());
        assert!(with_threads(&[std::process::id()], &mut over).is_empty());
        let equal = |_, _| Ok(Ordering::Less);
        assert!(tables_by(Task::first(1), numbered(2..5), &mut over, equal).is_empty());
    }
}
