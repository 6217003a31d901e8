//! Whose a bind node is, as
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html) of any
//! mount namespace shows it, wherever the node was moved, and also after a restart of the agent.
//!
//! The source of the node's tmpfs names the volume, and the name of the file in it the attachment.
//! A container that may mount can imitate both. So a mount is ours only if its root is a block
//! device of the volume's number, too.

use super::path::NodePath;
use crate::procfs::mountinfo::MountLine;

/// The identity of one attachment's bind node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    source: String,
    name: String,
    path: String,
}

impl Identity {
    /// For the volume `serial` at `path` of a container.
    pub(crate) fn new(serial: &str, container: &str, path: &NodePath) -> Identity {
        // A container's id has no NUL byte.
        let attachment = [container.as_bytes(), b"\0", path.as_str().as_bytes()].concat();
        Identity {
            source: format!("ecrblk-{serial}"),
            name: format!("{:016x}", fnv_1a(&attachment)),
            path: path.as_str().to_owned(),
        }
    }

    /// The source of its tmpfs.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The name of its file.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it was made.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether a line of mountinfo shows it.
    pub(super) fn is_shown_by(&self, mount: &MountLine<'_>) -> bool {
        let root = mount.root;
        // In earlier releases all nodes had the same identity, and were found by their path.
        let is_older = || {
            root == b"/volume"
                && mount.source() == b"volume"
                && mount.point() == self.path.as_bytes()
        };
        let has_source = || mount.source() == self.source.as_bytes();
        let has_root = root.strip_prefix(b"/") == Some(self.name.as_bytes());
        (has_root && has_source()) || is_older()
    }
}

/// The hash function [FNV-1a](https://datatracker.ietf.org/doc/html/draft-eastlake-fnv) of 64 bits.
/// It distinguishes the attachments of one volume, and need not resist an attacker: see the head of
/// this file.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(b"", 0xcbf2_9ce4_8422_2325)]
    #[case(b"a", 0xaf63_dc4c_8601_ec8c)]
    #[case(b"foobar", 0x8594_4171_f739_67e8)]
    fn the_hash_is_that_of_the_specification(#[case] bytes: &[u8], #[case] hash: u64) {
        assert_eq!(fnv_1a(bytes), hash);
    }

    #[test]
    fn only_a_mount_of_this_attachment_is_shown() {
        let path = NodePath::new("/dev/xvda").unwrap();
        let ours = Identity::new("0123456789abcdef", "c1", &path);
        let line = |root: &str, source: &str| {
            let line = format!("40 36 0:44 {root} /dev/xvda rw - tmpfs {source} rw,size=4k");
            ours.is_shown_by(&MountLine::all(line.as_ref()).next().unwrap())
        };
        let root = format!("/{}", ours.name());
        assert!(line(&root, "ecrblk-0123456789abcdef"));
        assert!(!line(&root, "ecrblk-0123456789abcdee"));
        assert!(!line("/", "ecrblk-0123456789abcdef"));
        assert!(line("/volume", "volume"), "a node of an earlier release");
        assert!(!line("/volume", "ecrblk-0123456789abcdef"));
        let other = Identity::new("0123456789abcdef", "c2", &path);
        assert!(!line(&format!("/{}", other.name()), "ecrblk-0123456789abcdef"));
        assert_ne!(Identity::new("s", "c", &NodePath::new("/d/x").unwrap()).name(), other.name());
    }
}
