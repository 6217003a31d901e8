//! Mounts in every mount namespace of the guest:
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html), once
//! for each namespace.

use std::{collections::HashSet, fs::File, io::Read as _, rc::Rc};

use super::{
    disk::Disk,
    found::{Found, LONGEST_NAME, Trace},
    process,
};
use crate::{holder::HolderKind, namespace::Target, procfs::mountinfo::MountLine, text::readable};

/// Whether a mount is on a disk. A file system with its own device number (btrfs) shows the disk
/// only as the source that was mounted.
fn is_on(mount: &MountLine<'_>, disk: &Disk) -> bool {
    let by_name = |source: &[u8]| {
        let name = source.strip_prefix(b"/dev/");
        let is_named = disk.devices.iter().any(|(own, _)| name == Some(own.as_bytes()));
        is_named || source == disk.path.as_bytes()
    };
    if disk.has(mount.number) {
        return true;
    }
    let source = mount.source();
    mount.number.major == 0 && source.starts_with(b"/") && by_name(&source)
}

/// Finds the mounts of `disks` in the namespaces of `pids` and in our own.
pub(super) fn mounts(pids: &[u32], disks: &[Disk], containers: &[&Target]) -> Vec<Found> {
    let own = std::process::id();
    let mut namespaces = HashSet::new();
    let mut found = Vec::new();
    for pid in [own].iter().chain(pids).copied() {
        // The process has ended, or it is a kernel thread without a namespace.
        if !process::mount_namespace(pid).is_ok_and(|namespace| namespaces.insert(namespace)) {
            continue;
        }
        let Ok(mut file) = File::open(format!("/proc/{pid}/mountinfo")) else { continue };
        let mut text = Vec::new();
        if file.read_to_end(&mut text).is_err() {
            continue;
        }
        // Our own namespace exists independently of any other process.
        let trace = Trace::Changes(Rc::new(file), (pid != own).then_some(pid));
        for mount in MountLine::all(&text) {
            for disk in disks.iter().filter(|disk| is_on(&mount, disk)) {
                let point = readable(&mount.point(), LONGEST_NAME);
                let detail = format!("{point} ({})", readable(mount.file_system, LONGEST_NAME));
                let mut holder = Found::new(disk, HolderKind::Mount, detail, trace.clone());
                if pid != own {
                    process::identify(&mut holder.holder, pid, containers);
                }
                found.push(holder);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::block::DeviceNumber;

    fn disk() -> Disk {
        let device = |name: &str, minor| (name.to_owned(), DeviceNumber { major: 8, minor });
        Disk {
            serial: "s".into(),
            path: "/dev/xvda".into(),
            devices: vec![device("sda", 16), device("sda1", 17)],
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
