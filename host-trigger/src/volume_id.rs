//! The names of a volume in QEMU and in the guest. They are derived from the sandbox and from the
//! source's identity: the same command finds what an earlier one did, and QEMU's refusal of a
//! duplicate name keeps two runs apart.

use std::fmt;

use sha2::{Digest, Sha256};

/// A volume's ID: sixteen hexadecimal digits. It is also the disk's serial number in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(String);

impl VolumeId {
    /// Derives the ID of the source `identity` (`b:major:minor:diskseq` or `f:dev:inode`) in a
    /// sandbox.
    pub fn derive(sandbox: &str, identity: &str) -> Self {
        // None of the parts contains NUL.
        Self(digits(["ecrblk1", sandbox, identity].join("\0")))
    }

    /// Parses sixteen hexadecimal digits in lower case.
    pub fn parse(digits: &str) -> Option<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (digits.len() == 16 && digits.bytes().all(is_digit)).then(|| Self(digits.to_owned()))
    }

    /// The ID in the name of a volume's device or block node in QEMU.
    pub fn of_name(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("ecrblk-")?;
        Self::parse(digits.strip_suffix("-n").unwrap_or(digits))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of its `scsi-hd` device in QEMU.
    pub fn device(&self) -> String {
        format!("ecrblk-{}", self.0)
    }

    /// The name of its block node in QEMU (at most 31 characters).
    pub fn node(&self) -> String {
        format!("ecrblk-{}-n", self.0)
    }
}

impl VolumeId {
    /// The number of its descriptor set in QEMU, from 2^30 to 2^31 - 1: who does not choose a
    /// number gets the lowest one that is free. An older version did not choose it.
    pub(crate) fn set(&self) -> u64 {
        const FIRST: u64 = 1 << 30;
        // An ID is sixteen hexadecimal digits.
        FIRST + u64::from_str_radix(&self.0, 16).unwrap_or_default() % FIRST
    }

    /// The name of the block node that keeps the record of an abandoned volume (at most 31
    /// characters).
    pub(crate) fn abandoned_node(&self) -> String {
        format!("ecrblk-{}-a", self.0)
    }
}

/// The name that reserves a path in a container: that of a block node in QEMU (at most 31
/// characters). QEMU refuses a second node of the same name, so no second volume gets the path, and
/// the records of all other volumes need not be read.
pub(crate) fn reservation_name(container: &str, path: &str) -> String {
    // Neither contains NUL.
    format!("ecrblk-{}-p", digits([container, path].join("\0")))
}

/// Returns the first eight bytes of the hash of `text`.
fn digits(text: String) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn an_id_is_stable() {
        let id = VolumeId::derive("s1", "b:7:0:12");
        // printf 'ecrblk1\0s1\0b:7:0:12' | sha256sum
        assert_eq!(id.as_str(), "0dbb44d5db46db68");
        assert!(id.node().len() <= 31);
        assert_eq!(id.set(), 0x40000000 + (0xdb46_db68 & 0x3fff_ffff));
    }

    #[test]
    fn an_id_is_read_back_from_its_names() {
        let id = VolumeId::derive("s1", "b:7:0:12");
        assert_eq!(VolumeId::of_name(&id.device()), Some(id.clone()));
        assert_eq!(VolumeId::of_name(&id.node()), Some(id.clone()));
        assert_eq!(VolumeId::parse(id.as_str()), Some(id));
    }

    #[test]
    fn a_reservation_is_not_taken_for_a_volume() {
        let name = reservation_name("c1", "/dev/xvda");
        assert!(name.len() <= 31 && name != reservation_name("c1/dev", "/xvda"));
        assert_eq!(VolumeId::of_name(&name), None);
        let abandoned = VolumeId::derive("s1", "b:7:0:12").abandoned_node();
        assert!(abandoned.len() <= 31 && VolumeId::of_name(&abandoned).is_none());
    }

    #[rstest]
    fn foreign_names_are_left_alone(
        #[values(
            "",
            "scsi0",
            "ecrblk-",
            "ecrblk-0DBB44D5DB46DB68",
            "ecrblk-0dbb44d5db46db6",
            "0dbb44d5db46db68"
        )]
        name: &str,
    ) {
        assert_eq!(VolumeId::of_name(name), None);
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(VolumeId::derive("s1", "f:1:23"), VolumeId::derive("s1f", ":1:23"));
    }
}
