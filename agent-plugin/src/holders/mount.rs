//! Mounts in every mount namespace of the guest:
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html), once
//! for each namespace. A thread may have one of its own.

use std::{fs::File, io::Read as _, rc::Rc, time::Instant};

use super::{
    disk::Disk,
    found::{Found, LONGEST_NAME, Trace},
    own::Own,
    process,
    scan::Budget,
    task::{Task, further_threads, with_threads},
};
use crate::{
    holder::HolderKind, namespace::Target, procfs::mountinfo::MountLine, sorted, text::readable,
};

/// Whether a mount is on a disk. A file system with its own device number (btrfs) shows the disk
/// only as the source that was mounted.
fn is_on(mount: &MountLine<'_>, disk: &Disk) -> bool {
    let by_name = |source: &[u8]| {
        let name = source.strip_prefix(b"/dev/");
        let is_named = disk.devices.iter().any(|(own, _)| name == Some(own.as_bytes()));
        is_named || source == disk.path.as_bytes()
    };
    if let Some(mounted) = &disk.mounted {
        return mounted.identity.is_of_volume(mount);
    }
    if disk.has(mount.number) {
        return true;
    }
    let source = mount.source();
    mount.number.major == 0 && source.starts_with(b"/") && by_name(&source)
}

/// How much of a mountinfo is read before the descriptors of processes are looked at: some hundred
/// mounts. A namespace may have a hundred thousand.
const SMALL: usize = 64 << 10;
/// After so much the time is looked at.
const STEP: usize = 16 << 10;

/// A search in the namespaces of all processes and threads, and in our own.
pub(super) struct Search<'a> {
    disks: &'a [Disk],
    containers: &'a [&'a Target],
    /// The inodes of those that were looked at, or are among `large`.
    namespaces: Vec<u64>,
    large: Vec<(Task, u64)>,
    pub(super) found: Vec<Found>,
}

impl<'a> Search<'a> {
    pub(super) fn new(disks: &'a [Disk], containers: &'a [&'a Target]) -> Search<'a> {
        Search { disks, containers, namespaces: Vec::new(), large: Vec::new(), found: Vec::new() }
    }

    /// Looks at the namespaces with few mounts.
    pub(super) fn small(&mut self, pids: &[u32], budget: &mut Budget) {
        self.visit(Task::first(std::process::id()), budget);
        for &pid in pids {
            self.visit(Task::first(pid), budget);
        }
        for pid in with_threads(pids, budget) {
            for task in further_threads(pid) {
                self.visit(task, budget);
            }
        }
    }

    /// Looks at those that [`Search::small`] left.
    pub(super) fn large(&mut self, budget: &mut Budget) {
        for (task, namespace) in std::mem::take(&mut self.large) {
            if !budget.is_left() {
                return;
            }
            self.look_at(task, namespace, usize::MAX, budget);
        }
    }

    /// Looks at the namespace of a thread, if it is a new one.
    fn visit(&mut self, task: Task, budget: &mut Budget) {
        if !budget.is_left() {
            return;
        }
        // The process has ended, or it is a kernel thread without a namespace.
        let Ok(namespace) = task.mount_namespace() else { return };
        let is_new = sorted::insert(&mut self.namespaces, namespace);
        if is_new && !self.look_at(task, namespace, SMALL, budget) {
            self.large.push((task, namespace));
        }
    }

    /// `false`: its mountinfo is longer than `limit`.
    fn look_at(&mut self, task: Task, namespace: u64, limit: usize, budget: &mut Budget) -> bool {
        let began = Instant::now();
        let Ok(mut file) = File::open(task.file("mountinfo")) else { return true };
        let text = read(&mut file, limit, budget);
        budget.spend(task.pid, began, 0);
        let Some(text) = text else { return false };
        let is_own = task.pid == std::process::id();
        let trace = match () {
            // Our own namespace exists independently of any other process.
            () if is_own => Trace::Changes(Rc::new(file), None),
            () if task.is_first() => Trace::Changes(Rc::new(file), Some(task.pid)),
            // Our descriptor would keep the mounts alive, and the end of a thread has no event.
            () => Trace::Nothing,
        };
        let own = Own::of(self.disks, &text, namespace);
        for mount in MountLine::all(&text).filter(|mount| !own.has(mount)) {
            for (index, disk) in self.disks.iter().enumerate() {
                if !is_on(&mount, disk) && !own.is_below(&mount, index) {
                    continue;
                }
                let point = readable(&mount.point(), LONGEST_NAME);
                let detail = format!("{point} ({})", readable(mount.file_system, LONGEST_NAME));
                let mut holder = Found::new(disk, HolderKind::Mount, detail, trace.clone());
                if !is_own {
                    process::identify(&mut holder.holder, task.pid, self.containers);
                }
                self.found.push(holder);
            }
        }
        true
    }
}

/// Reads what there is time for. `None`: it is longer than `limit`.
fn read(file: &mut File, limit: usize, budget: &mut Budget) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    loop {
        let read = file.take(STEP as u64).read_to_end(&mut text);
        if text.len() > limit {
            return None;
        }
        // A process that has ended has no mounts any more.
        if read.is_err() || matches!(read, Ok(0)) || !budget.is_left() {
            return Some(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, time::Duration};

    use rstest::rstest;

    use super::*;
    use crate::block::DeviceNumber;

    #[test]
    fn a_long_mountinfo_waits_and_is_cut_when_the_time_is_over() {
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(&vec![b'x'; SMALL + 1]).unwrap();
        let mut budget = Budget::until(Instant::now() + Duration::from_secs(60));
        let mut read_from_start = |limit, budget: &mut Budget| {
            std::io::Seek::rewind(&mut text).unwrap();
            read(&mut text, limit, budget).map(|text| text.len())
        };
        assert_eq!(read_from_start(SMALL, &mut budget), None);
        assert_eq!(read_from_start(usize::MAX, &mut budget), Some(SMALL + 1));
        let mut over = Budget::until(Instant::now());
        assert_eq!(read_from_start(usize::MAX, &mut over), Some(STEP));
    }

    fn disk() -> Disk {
        let device = |name: &str, minor| (name.to_owned(), DeviceNumber { major: 8, minor });
        Disk {
            serial: "s".into(),
            path: "/dev/xvda".into(),
            devices: vec![device("sda", 16), device("sda1", 17)],
            mounted: None,
        }
    }

    #[rstest]
    #[case::the_disk("36 35 8:16 / /mnt rw,noatime master:1 - ext4 /dev/sda rw", Some("/mnt"))]
    #[case::a_partition("36 35 8:17 / /a\\040b\\134c rw - xfs /dev/x rw", Some("/a b\\c"))]
    #[case::btrfs_by_the_kernels_name("36 35 0:44 /sub /mnt rw - btrfs /dev/sda1 rw", Some("/mnt"))]
    #[case::btrfs_by_the_containers_path("36 35 0:44 / /mnt rw - btrfs /dev/xvda rw", Some("/mnt"))]
    #[case::another_disk("36 35 8:32 / /mnt rw - ext4 /dev/sda rw", None)]
    #[case::a_tmpfs_with_any_name("36 35 0:44 / /mnt rw - tmpfs sda rw", None)]
    #[case::cut("36 35 8:16 / /mnt rw", None)]
    #[case::empty("", None)]
    fn mounts_are_found_by_number_or_by_name(#[case] line: &str, #[case] point: Option<&str>) {
        let mount = MountLine::parse(line.as_bytes()).filter(|mount| is_on(mount, &disk()));
        assert_eq!(mount.map(|mount| mount.point()).as_deref(), point.map(str::as_bytes));
    }

    #[test]
    fn a_path_is_compared_as_it_was_before_the_kernel_escaped_it() {
        let disk = Disk { path: "/dev/disk #1".into(), ..disk() };
        let line = b"36 35 0:44 / /mnt rw - btrfs /dev/disk\\040\\0431 rw";
        let mount = MountLine::parse(line).unwrap();
        assert!(is_on(&mount, &disk), "{mount:?}");
    }
}
