//! Processes and their descriptors:
//! [`/proc/PID/fd`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html),
//! [`comm`](https://man7.org/linux/man-pages/man5/proc_pid_comm.5.html),
//! [`cgroup`](https://man7.org/linux/man-pages/man7/cgroups.7.html).
//!
//! A descriptor is told by the number of its device, so that a node which the container made itself
//! counts as well as ours.

use std::{
    collections::HashSet,
    ffi::CString,
    fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use nix::sys::stat::{SFlag, fstat};

use super::{Disk, Found, Kind, Trace, shortened};
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    inode::Inode,
    namespace::Target,
};

/// Every process but the agent. Kernel threads have no descriptors and are left out where that is
/// cheap.
pub(super) fn pids() -> Result<Vec<u32>> {
    let own = std::process::id();
    let threads = kernel_threads();
    let entries = fs::read_dir("/proc").map_err(Error::system("readdir", "/proc"))?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|pid| *pid != own && !threads.contains(pid)).collect())
}

/// The children of kthreadd, where process 2 is that. The few programs that the kernel starts by
/// itself are among them, and end soon.
fn kernel_threads() -> HashSet<u32> {
    let stat = fs::read_to_string("/proc/2/stat").unwrap_or_default();
    if !is_kernel_thread(&stat) {
        return HashSet::new();
    }
    let children = fs::read_to_string("/proc/2/task/2/children").unwrap_or_default();
    children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).chain([2]).collect()
}

/// By the ninth field of `/proc/PID/stat`, the kernel's flags.
fn is_kernel_thread(stat: &str) -> bool {
    const PF_KTHREAD: u64 = 0x0020_0000;
    // The second field is the name in parentheses, and may hold anything.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace());
    let flags =
        fields.and_then(|mut fields| fields.nth(6)).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_KTHREAD != 0)
}

/// Those of `pids` that have one of `disks` open, each once a disk.
pub(super) fn openers(pids: &[u32], disks: &[Disk], known: &[&Target]) -> Vec<Found> {
    let mut found = Vec::new();
    for &pid in pids {
        let directory = format!("/proc/{pid}/fd");
        // It has ended, and with it its descriptors.
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
            let name = fs::read_link(&path).unwrap_or_default().to_string_lossy().into_owned();
            // It is we who took the node away.
            let name = name.strip_suffix(" (deleted)").unwrap_or(&name).to_owned();
            found.push(
                Found::new(&disks[index], Kind::Process, name, Trace::Descriptor(path))
                    .by(pid, known),
            );
        }
    }
    found
}

/// The block device that `path` leads to; `None` for everything else.
pub(super) fn block_device(path: &Path) -> Option<DeviceNumber> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let found = Inode::followed(&path).ok()?;
    (found.kind == SFlag::S_IFBLK).then_some(found.device)
}

/// The name of a process; empty where it has ended.
pub(super) fn command(pid: u32) -> String {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    shortened(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// The number of a process's mount namespace.
pub(super) fn mount_namespace(pid: u32) -> io::Result<u64> {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).map(|namespace| namespace.ino())
}

/// The container that a process is in: one of `known`, or what its cgroup is called if that is an
/// id.
pub(super) fn container(pid: u32, known: &[&Target]) -> String {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let cgroup = cgroup_of(&cgroups).unwrap_or_default();
    let namespace = mount_namespace(pid).ok();
    let is_in = |target: &&&Target| {
        let own = fstat(target.container.mount_namespace.as_fd()).ok().map(|stat| stat.st_ino);
        (own.is_some() && own == namespace) || is_below(cgroup, &target.container.cgroup)
    };
    match known.iter().find(is_in) {
        Some(target) => target.id.to_string(),
        None => id_of(cgroup).to_owned(),
    }
}

fn is_below(cgroup: &str, container: &Path) -> bool {
    // A container in the root group would have every process.
    container.parent().is_some() && Path::new(cgroup).starts_with(container)
}

/// The path in the hierarchy that has the device filter: that of the v1 controller, or the unified
/// one.
fn cgroup_of(text: &str) -> Option<&str> {
    let line = |wanted: fn(&str) -> bool| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            wanted(controllers).then_some(path)
        })
    };
    let devices =
        line(|controllers| controllers.split(',').any(|controller| controller == "devices"));
    devices.or_else(|| line(str::is_empty))
}

/// The last component of a cgroup's path, if it is what runtimes make of a container's id: 12 to
/// 128 hexadecimal digits, perhaps with systemd's prefix and suffix.
fn id_of(cgroup: &str) -> &str {
    let last = cgroup.rsplit('/').next().unwrap_or_default();
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
    #[case("2 (kthreadd) S 0 0 0 0 -1 2129984 0", true)]
    #[case("2 (a) S 0 (b) R 1 2 2 0 -1 4194560 0", false)]
    #[case("7 (x) S 1", false)]
    #[case("", false)]
    fn kernel_threads_are_told_by_their_flags(#[case] stat: &str, #[case] expected: bool) {
        assert_eq!(is_kernel_thread(stat), expected);
    }

    #[rstest]
    #[case("0::/pod/c1\n", Some("/pod/c1"))]
    #[case("5:cpu,devices:/pod/c2\n0::/other\n", Some("/pod/c2"))]
    #[case("4:cpuset:/a\n0::/a:b\n", Some("/a:b"))]
    #[case("", None)]
    fn the_cgroup_is_that_of_the_device_filter(#[case] text: &str, #[case] expected: Option<&str>) {
        assert_eq!(cgroup_of(text), expected);
    }

    #[rstest]
    #[case("/pod/0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef")]
    #[case("/a/cri-containerd-0123456789ab.scope", "0123456789ab")]
    #[case("/kubepods-pod1.slice:cri-containerd:0123456789ab", "0123456789ab")]
    #[case("/system.slice/cron.service", "")]
    #[case("/pod", "")]
    #[case("/0123456789abcdef/nested", "")]
    #[case("/", "")]
    fn only_an_id_is_taken_for_a_container(#[case] cgroup: &str, #[case] id: &str) {
        assert_eq!(id_of(cgroup), id);
    }

    #[test]
    fn a_group_below_the_container_s_is_the_container_s() {
        assert!(is_below("/pod/c1/nested", Path::new("/pod/c1")));
        assert!(!is_below("/pod/c10", Path::new("/pod/c1")));
        assert!(!is_below("/pod/c1", Path::new("/")));
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
    fn what_is_no_block_device_is_none() {
        assert_eq!(block_device(Path::new("/dev/null")), None);
        assert_eq!(block_device(Path::new("/proc/self/fd/999999")), None);
    }
}
