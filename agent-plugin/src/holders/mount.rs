//! Mounts in every mount namespace of the guest:
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html), once
//! for each namespace.

use std::{collections::HashSet, fs::File, io::Read as _, rc::Rc};

use super::{Disk, Found, Kind, Trace, process};
use crate::{block::DeviceNumber, mountinfo::unescaped, namespace::Target};

/// A line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) number: DeviceNumber,
    pub(crate) point: String,
    pub(crate) kind: String,
    pub(crate) source: String,
}

impl Mount {
    pub(crate) fn parse(line: &str) -> Option<Mount> {
        let (fields, rest) = line.split_once(" - ")?;
        let text = |field| String::from_utf8_lossy(&unescaped(field)).into_owned();
        let mut fields = fields.split(' ');
        let (number, point) = (fields.nth(2)?.parse().ok()?, text(fields.nth(1)?));
        let mut rest = rest.split(' ');
        Some(Mount { number, point, kind: rest.next()?.to_owned(), source: text(rest.next()?) })
    }

    /// A file system with a number of its own tells only what it was asked to mount (btrfs).
    fn is_on(&self, disk: &Disk) -> bool {
        let by_name = || {
            let named = disk
                .devices
                .iter()
                .any(|(name, _)| self.source.strip_prefix("/dev/") == Some(name));
            named || self.source == disk.path
        };
        disk.has(self.number)
            || (self.number.major == 0 && self.source.starts_with('/') && by_name())
    }
}

/// The mounts of `disks` that the namespaces of `pids` and our own have.
pub(super) fn mounts(pids: &[u32], disks: &[Disk], known: &[&Target]) -> Vec<Found> {
    let own = std::process::id();
    let mut namespaces = HashSet::new();
    let mut found = Vec::new();
    for pid in [own].iter().chain(pids).copied() {
        // It has ended, or it is a kernel thread without one.
        if !process::mount_namespace(pid).is_ok_and(|namespace| namespaces.insert(namespace)) {
            continue;
        }
        let Ok(mut file) = File::open(format!("/proc/{pid}/mountinfo")) else { continue };
        let mut text = Vec::new();
        if file.read_to_end(&mut text).is_err() {
            continue;
        }
        // Our own namespace stays whatever ends.
        let trace = Trace::Changes(Rc::new(file), (pid != own).then_some(pid));
        for mount in String::from_utf8_lossy(&text).lines().filter_map(Mount::parse) {
            for disk in disks.iter().filter(|disk| mount.is_on(disk)) {
                let detail = format!("{} ({})", mount.point, mount.kind);
                let mount = Found::new(disk, Kind::Mount, detail, trace.clone());
                found.push(if pid == own { mount } else { mount.by(pid, known) });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

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
    #[case::btrfs_by_the_kernel_s_name(
        "36 35 0:44 /sub /mnt rw - btrfs /dev/sda1 rw",
        Some("/mnt")
    )]
    #[case::btrfs_by_the_container_s_path(
        "36 35 0:44 / /mnt rw - btrfs /dev/xvda rw",
        Some("/mnt")
    )]
    #[case::another_disk("36 35 8:32 / /mnt rw - ext4 /dev/sda rw", None)]
    #[case::a_tmpfs_with_any_name("36 35 0:44 / /mnt rw - tmpfs sda rw", None)]
    #[case::cut("36 35 8:16 / /mnt rw", None)]
    #[case::empty("", None)]
    fn mounts_are_found_by_number_or_by_name(#[case] line: &str, #[case] point: Option<&str>) {
        let mount = Mount::parse(line).filter(|mount| mount.is_on(&disk()));
        assert_eq!(mount.map(|mount| mount.point).as_deref(), point);
    }

    #[test]
    fn a_path_is_compared_as_it_was_before_the_kernel_escaped_it() {
        let disk = Disk { path: "/dev/disk #1".into(), ..disk() };
        let mount = Mount::parse("36 35 0:44 / /mnt rw - btrfs /dev/disk\\040\\0431 rw").unwrap();
        assert!(mount.is_on(&disk), "{mount:?}");
    }
}
