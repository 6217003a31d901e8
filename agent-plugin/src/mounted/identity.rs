//! Whose a mount is, as
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html) of any
//! mount namespace shows it, wherever the mount was moved, and also after a restart of the agent.
//!
//! The source of a mount is the path of a device node that existed for a moment only. It names the
//! volume and the attachment. A container that may mount can imitate it, but not together with the
//! number of the disk. Btrfs shows a number of its own, and as the source the node that was used
//! last for the disk: there the volume is named, and the path of the attachment decides.

use crate::{
    block::DeviceNumber,
    device_node::{Identity, NodePath},
    file_system::{Kind, Source},
    procfs::mountinfo::MountLine,
};

/// The identity of one attachment's mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountIdentity {
    /// `ecrblk-SERIAL-ATTACHMENT`.
    node: String,
    /// How many bytes of it name the volume.
    volume: usize,
    path: NodePath,
    /// `None`: the disk is gone, and its number may be another's.
    number: Option<DeviceNumber>,
}

impl MountIdentity {
    /// For the volume `serial` at `path` of a container.
    pub fn new(
        serial: &str,
        container: &str,
        path: &NodePath,
        number: Option<DeviceNumber>,
    ) -> MountIdentity {
        let attachment = Identity::new(serial, container, path);
        let node = format!("{}-{}", attachment.source(), attachment.name());
        let volume = attachment.source().len() + 1;
        MountIdentity { node, volume, path: path.clone(), number }
    }

    /// The disk as a source of this attachment's mount.
    pub fn source(&self, disk: &str, number: DeviceNumber) -> Source {
        Source { disk: disk.to_owned(), number, node: self.node.clone() }
    }

    /// Whether a line of mountinfo shows a mount of this attachment.
    pub fn is_shown_by(&self, line: &MountLine<'_>) -> bool {
        if !self.is_of_volume(line) {
            return false;
        }
        let source = line.source();
        let is_exact = source.strip_prefix(b"/dev/") == Some(self.node.as_bytes());
        let is_btrfs = line.file_system == Kind::Btrfs.name().as_bytes();
        is_exact || is_btrfs && line.point() == self.path.as_str().as_bytes()
    }

    /// Whether it shows any mount of the volume's superblock, also one that a process has copied.
    pub fn is_of_volume(&self, line: &MountLine<'_>) -> bool {
        let kind = str::from_utf8(line.file_system).ok().and_then(Kind::named);
        let Some(kind) = kind else { return false };
        let is_named = || {
            let (source, volume) = (line.source(), &self.node.as_bytes()[..self.volume]);
            source.strip_prefix(b"/dev/").is_some_and(|name| name.starts_with(volume))
        };
        if kind.has_own_numbers() {
            return line.number.major == 0 && is_named();
        }
        match self.number {
            Some(number) => line.number == number,
            None => is_named(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const NUMBER: DeviceNumber = DeviceNumber { major: 8, minor: 16 };

    fn identity(number: Option<DeviceNumber>) -> MountIdentity {
        MountIdentity::new("s1", "c1", &NodePath::new("/data").unwrap(), number)
    }

    fn line(text: &str) -> String {
        text.replace("NODE", &identity(None).node)
    }

    #[rstest]
    #[case::ours("36 35 8:16 / /data rw - ext4 /dev/NODE rw", true, true)]
    #[case::moved("36 35 8:16 / /elsewhere rw - ext4 /dev/NODE rw", true, true)]
    #[case::another_attachment("36 35 8:16 / /data rw - ext4 /dev/ecrblk-s1-0 rw", false, true)]
    #[case::another_disk("36 35 8:32 / /data rw - ext4 /dev/NODE rw", false, false)]
    #[case::imitated("36 35 0:44 / /data rw - tmpfs /dev/NODE rw", false, false)]
    #[case::btrfs("36 35 0:44 / /elsewhere rw - btrfs /dev/NODE rw", true, true)]
    #[case::btrfs_renamed("36 35 0:44 / /data rw - btrfs /dev/ecrblk-s1-0 rw", true, true)]
    #[case::btrfs_of_others("36 35 0:44 / /other rw - btrfs /dev/ecrblk-s1-0 rw", false, true)]
    #[case::another_volume("36 35 0:44 / /data rw - btrfs /dev/ecrblk-s10-0 rw", false, false)]
    fn a_mount_is_known_by_number_and_source(
        #[case] text: &str,
        #[case] is_ours: bool,
        #[case] is_of_volume: bool,
    ) {
        let (text, identity) = (line(text), identity(Some(NUMBER)));
        let line = MountLine::parse(text.as_bytes()).unwrap();
        assert_eq!(identity.is_shown_by(&line), is_ours);
        assert_eq!(identity.is_of_volume(&line), is_of_volume);
    }

    #[test]
    fn without_a_disk_the_source_decides() {
        let gone = identity(None);
        let text = line("36 35 8:16 / /data rw - ext4 /dev/NODE rw");
        assert!(gone.is_shown_by(&MountLine::parse(text.as_bytes()).unwrap()));
        let text = "36 35 8:16 / /data rw - ext4 /dev/sda rw";
        assert!(!gone.is_shown_by(&MountLine::parse(text.as_bytes()).unwrap()));
    }
}
