//! Mounts of volumes in one mount namespace: those that containers have, which hold nothing, and
//! what is on them or made of them
//! ([overlayfs](https://docs.kernel.org/filesystems/overlayfs.html)).

use super::disk::Disk;
use crate::{
    procfs::mountinfo::MountLine,
    text::{split_once, unescaped},
};

/// The mounts of volumes in one namespace.
pub(super) struct Own {
    /// Ids of mounts that containers have of their volumes.
    ids: Vec<u32>,
    /// Of each disk that is mounted in this namespace: its index, and a mount's id and point.
    mounts: Vec<(usize, u32, Vec<u8>)>,
}

impl Own {
    pub(super) fn of(disks: &[Disk], text: &[u8], namespace: u64) -> Own {
        let mut own = Own { ids: Vec::new(), mounts: Vec::new() };
        if disks.iter().all(|disk| disk.mounted.is_none()) {
            return own;
        }
        for (index, disk) in disks.iter().enumerate() {
            let Some(mounted) = &disk.mounted else { continue };
            let is_own = |line: &MountLine<'_>| {
                mounted.namespace == Some(namespace) && mounted.identity.is_shown_by(line)
            };
            // Where one is at the path, the others are copies that the container has made. The
            // container may also have moved it.
            let is_at_path = |line: &MountLine<'_>| line.point() == disk.path.as_bytes();
            let at_path = MountLine::all(text).find(|line| is_own(line) && is_at_path(line));
            for line in MountLine::all(text) {
                if mounted.identity.is_of_volume(&line) {
                    own.mounts.push((index, line.id, line.point()));
                }
                if is_own(&line) && at_path.is_none_or(|at_path| at_path.id == line.id) {
                    own.ids.push(line.id);
                }
            }
        }
        own
    }

    pub(super) fn has(&self, line: &MountLine<'_>) -> bool {
        self.ids.contains(&line.id)
    }

    /// Whether a mount is on one of the disk's file system, or an overlay is made of its files.
    pub(super) fn is_below(&self, line: &MountLine<'_>, disk: usize) -> bool {
        self.mounts.iter().filter(|(index, ..)| *index == disk).any(|(_, id, point)| {
            line.parent == *id || line.file_system == b"overlay" && is_layer(line.options, point)
        })
    }
}

/// Whether a layer of an overlay is at or below a mount point. The kernel shows the paths as they
/// were when it was mounted.
pub(crate) fn is_layer(options: &[u8], point: &[u8]) -> bool {
    let is_inside = |path: &[u8]| {
        path.strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    options.split(|&byte| byte == b',').any(|option| {
        let Some((name, paths)) = split_once(option, b"=") else { return false };
        let is_layer = matches!(name, b"lowerdir" | b"upperdir" | b"workdir" | b"lowerdir+");
        is_layer && unescaped(paths).split(|&byte| byte == b':').any(is_inside)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::{
        block::DeviceNumber, device_node::NodePath, holders::OwnMount, mounted::MountIdentity,
    };

    const NAMESPACE: u64 = 5;

    fn disk() -> Disk {
        let number = DeviceNumber { major: 8, minor: 16 };
        let path = NodePath::new("/data").unwrap();
        let identity = MountIdentity::new("s", "c", &path, Some(number));
        let mounted = OwnMount { identity, namespace: Some(NAMESPACE), numbers: vec![number] };
        let devices = vec![("sdb".to_owned(), number)];
        Disk { serial: "s".into(), path: "/data".into(), devices, mounted: Some(mounted) }
    }

    /// The ids of those mounts that are own, and of those that are on one of the volume or made of
    /// it.
    fn ids(namespace: u64, text: &str) -> (Vec<u32>, Vec<u32>) {
        let disk = disk();
        let source = disk.mounted.as_ref().unwrap().identity.source("sdb", disk.devices[0].1);
        let text = text.replace("NODE", &format!("/dev/{}", source.node));
        let own = Own::of(&[disk], text.as_bytes(), namespace);
        let ids = |is: &dyn Fn(&MountLine<'_>) -> bool| {
            MountLine::all(text.as_bytes()).filter(is).map(|line| line.id).collect()
        };
        (ids(&|line| own.has(line)), ids(&|line| own.is_below(line, 0)))
    }

    const MOUNTS: &str = "36 35 8:16 / /data rw - ext4 NODE rw\n\
        37 35 8:16 / /copy rw - ext4 NODE rw\n\
        38 36 0:44 / /data/t rw - tmpfs t rw\n\
        39 35 0:45 / /o rw - overlay o rw,lowerdir=/l:/copy/x,upperdir=/u,workdir=/w\n\
        40 35 0:46 / /p rw - overlay o rw,lowerdir=/database,upperdir=/u,workdir=/w\n";

    #[test]
    fn the_mount_at_the_path_is_the_containers_own() {
        assert_eq!(ids(NAMESPACE, MOUNTS), (vec![36], vec![38, 39]));
        assert_eq!(ids(NAMESPACE + 1, MOUNTS).0, Vec::<u32>::new());
    }

    #[test]
    fn a_mount_that_was_moved_is_the_containers_own() {
        let moved = "36 35 8:16 / /elsewhere rw - ext4 NODE rw\n";
        assert_eq!(ids(NAMESPACE, moved), (vec![36], vec![]));
    }

    #[rstest]
    #[case(b"rw,lowerdir=/data", true)]
    #[case(b"rw,lowerdir=/a:/data/b", true)]
    #[case(b"rw,upperdir=/data/b,workdir=/w", true)]
    #[case(b"rw,lowerdir=/database", false)]
    #[case(b"rw,xino=/data", false)]
    #[case(b"rw", false)]
    fn a_layer_is_at_or_below_the_mount_point(#[case] options: &[u8], #[case] is: bool) {
        assert_eq!(is_layer(options, b"/data"), is);
    }
}
