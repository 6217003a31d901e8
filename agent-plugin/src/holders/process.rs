//! Processes and their descriptors:
//! [`/proc/PID/fd`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html),
//! [`comm`](https://man7.org/linux/man-pages/man5/proc_pid_comm.5.html),
//! [`cgroup`](https://man7.org/linux/man-pages/man7/cgroups.7.html).
//!
//! A descriptor is recognized by its device number, so that a node which the container made itself
//! is found as well as ours.

use std::{
    collections::HashSet,
    ffi::{CString, OsStr},
    fs, io,
    os::{
        fd::AsFd as _,
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::Path,
};

use nix::sys::stat::{SFlag, fstat};

use super::{
    disk::Disk,
    found::{Found, LONGEST_NAME, Trace},
};
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    holder::{Holder, HolderKind},
    inode::Inode,
    namespace::Target,
    procfs::{cgroup::device_group, stat::is_kernel_thread},
    text::{decimal, readable, words},
};

/// Returns every process but the agent. Kernel threads have no descriptors, and are left out where
/// that is cheap.
pub(super) fn pids() -> Result<Vec<u32>> {
    let own = std::process::id();
    let threads = kernel_threads();
    let entries = fs::read_dir("/proc").map_err(Error::system("readdir", "/proc"))?;
    let pids = entries.flatten().filter_map(|entry| decimal(entry.file_name().as_bytes()));
    Ok(pids.filter(|pid| *pid != own && !threads.contains(pid)).collect())
}

/// The children of kthreadd, where that is process 2. They include the few programs that the kernel
/// starts by itself, which end soon.
fn kernel_threads() -> HashSet<u32> {
    let stat = fs::read("/proc/2/stat").unwrap_or_default();
    if !is_kernel_thread(&stat) {
        return HashSet::new();
    }
    let children = fs::read("/proc/2/task/2/children").unwrap_or_default();
    words(&children).filter_map(decimal).chain([2]).collect()
}

/// Finds the processes among `pids` that have one of `disks` open, each once per disk.
pub(super) fn openers(pids: &[u32], disks: &[Disk], containers: &[&Target]) -> Vec<Found> {
    let mut found = Vec::new();
    for &pid in pids {
        let directory = format!("/proc/{pid}/fd");
        // The process has ended, and its descriptors are closed.
        let Ok(descriptors) = fs::read_dir(&directory) else { continue };
        let mut holds: Vec<usize> = Vec::new();
        for descriptor in descriptors.flatten() {
            let path = descriptor.path();
            let Some(number) = block_device(&path) else { continue };
            let Some(index) = disks.iter().position(|disk| disk.has(number)) else { continue };
            if holds.contains(&index) {
                continue;
            }
            holds.push(index);
            let name = fs::read_link(&path).unwrap_or_default();
            let name = name.as_os_str().as_bytes();
            // The node was removed by us.
            let name = readable(name.strip_suffix(b" (deleted)").unwrap_or(name), LONGEST_NAME);
            let trace = Trace::Descriptor(path);
            let mut opener = Found::new(&disks[index], HolderKind::Process, name, trace);
            identify(&mut opener.holder, pid, containers);
            found.push(opener);
        }
    }
    found
}

/// Fills in the process of a holder, and the container that the process is in.
pub(super) fn identify(holder: &mut Holder, pid: u32, containers: &[&Target]) {
    holder.pid = pid;
    holder.command = command(pid);
    holder.container_id = container(pid, containers);
}

/// The block device that `path` leads to; `None` for everything else.
pub(super) fn block_device(path: &Path) -> Option<DeviceNumber> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let found = Inode::followed(&path).ok()?;
    (found.kind == SFlag::S_IFBLK).then_some(found.device)
}

/// The name of a process; empty where it has ended.
fn command(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    // The kernel adds the last newline; others belong to the name.
    readable(name.strip_suffix(b"\n").unwrap_or(&name), LONGEST_NAME)
}

/// The inode number of a process's mount namespace.
pub(super) fn mount_namespace(pid: u32) -> io::Result<u64> {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).map(|namespace| namespace.ino())
}

/// The container that a process is in: one of `containers`, or the name of its cgroup if that is a
/// container id.
fn container(pid: u32, containers: &[&Target]) -> String {
    let cgroups = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let cgroup = device_group(&cgroups).unwrap_or(Path::new(""));
    let namespace = mount_namespace(pid).ok();
    let is_in = |target: &&&Target| {
        let own = fstat(target.container.mount_namespace.as_fd()).ok().map(|stat| stat.st_ino);
        (own.is_some() && own == namespace) || is_below(cgroup, &target.container.cgroup)
    };
    match containers.iter().find(is_in) {
        Some(target) => target.id.to_string(),
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
mod tests {
    use std::{fs::File, process::Command};

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/pod/0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef")]
    #[case("/a/cri-containerd-0123456789ab.scope", "0123456789ab")]
    #[case("/kubepods-pod1.slice:cri-containerd:0123456789ab", "0123456789ab")]
    #[case("/system.slice/cron.service", "")]
    #[case("/pod", "")]
    #[case("/0123456789abcdef/nested", "")]
    #[case("/", "")]
    fn only_an_id_is_taken_for_a_container(#[case] cgroup: &str, #[case] id: &str) {
        assert_eq!(id_of(Path::new(cgroup)), id);
    }

    #[test]
    fn a_group_below_the_containers_belongs_to_the_container() {
        assert!(is_below(Path::new("/pod/c1/nested"), Path::new("/pod/c1")));
        assert!(!is_below(Path::new("/pod/c10"), Path::new("/pod/c1")));
        assert!(!is_below(Path::new("/pod/c1"), Path::new("/")));
    }

    #[test]
    fn a_process_that_has_the_device_open_is_found_and_this_one_is_not() {
        let node = "/dev/loop0";
        let open = File::open(node).expect("these tests need root and the loop module");
        let number = block_device(Path::new(node)).unwrap();
        let disk = Disk {
            serial: "s".into(),
            path: "/dev/xvda".into(),
            devices: vec![("loop0".into(), number)],
        };
        let mut child =
            Command::new("sleep").arg("60").stdin(open.try_clone().unwrap()).spawn().unwrap();
        let found = openers(&pids().unwrap(), &[disk], &[]);
        child.kill().unwrap();
        child.wait().unwrap();
        let found: Vec<_> =
            found.into_iter().filter(|found| found.holder.command == "sleep").collect();
        assert_eq!(found.len(), 1, "{found:?}");
        let holder = &found[0].holder;
        assert_eq!((holder.pid, holder.detail.as_str()), (child.id(), node));
    }

    #[test]
    fn other_files_are_no_block_devices() {
        assert_eq!(block_device(Path::new("/dev/null")), None);
        assert_eq!(block_device(Path::new("/proc/self/fd/999999")), None);
    }
}
