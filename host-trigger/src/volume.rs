//! A volume's name in QEMU and in the guest. It is derived, from the sandbox and from what
//! identifies the source, so that the same command finds what an earlier one did, and so that
//! QEMU's refusal of a duplicate keeps two runs apart.

use std::fmt;

use sha2::{Digest, Sha256};

/// Beginning of the names that a node has in the guest before it is complete.
const TEMPORARY: &str = ".ecrblk-";

/// Sixteen hexadecimal digits; the disk's serial in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeId(String);

impl VolumeId {
    /// The id of the source `identity` (`b:major:minor:diskseq` or `f:dev:inode`) in a sandbox.
    pub fn derive(sandbox: &str, identity: &str) -> Self {
        // NUL occurs in none of the parts.
        Self(digits(["ecrblk1", sandbox, identity].join("\0")))
    }

    /// The id of these digits; `None` if they are not sixteen, in lower case.
    pub fn parse(digits: &str) -> Option<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (digits.len() == 16 && digits.bytes().all(is_digit)).then(|| Self(digits.to_owned()))
    }

    /// The volume whose device or node in QEMU this is.
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

/// The name of a place in a container, on a block node in QEMU (at most 31 characters): QEMU
/// refuses a second node of a name, so that no second volume gets to the place, without a look at
/// the records of all that are there.
pub(crate) fn place_name(container: &str, path: &str) -> String {
    // NUL occurs in neither.
    format!("ecrblk-{}-p", digits([container, path].join("\0")))
}

/// The first eight bytes of the hash of `text`.
fn digits(text: String) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Is `path` fit to be a device's path in a container? Absolute, normal, bounded.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_device_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("it is not absolute");
    }
    if path.len() > 4096 {
        return Err("it is longer than 4096 bytes");
    }
    if path.contains('\0') {
        return Err("it holds a NUL");
    }
    for part in path[1..].split('/') {
        match part {
            "" => return Err("it has an empty component"),
            "." | ".." => return Err("it has a component \".\" or \"..\""),
            _ if part.starts_with(TEMPORARY) => {
                return Err("it has a name that the plugin uses itself");
            }
            _ if part.len() > 255 => return Err("it has a component of more than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
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
    }

    #[test]
    fn an_id_is_read_back_from_its_names() {
        let id = VolumeId::derive("s1", "b:7:0:12");
        assert_eq!(VolumeId::of_name(&id.device()), Some(id.clone()));
        assert_eq!(VolumeId::of_name(&id.node()), Some(id.clone()));
        assert_eq!(VolumeId::parse(id.as_str()), Some(id));
    }

    #[test]
    fn the_name_of_a_place_is_no_volumes() {
        let name = place_name("c1", "/dev/xvda");
        assert!(name.len() <= 31 && name != place_name("c1/dev", "/xvda"));
        assert_eq!(VolumeId::of_name(&name), None);
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

    #[rstest]
    fn good_paths_pass(#[values("/dev/xvda", "/data/a b", "/dev/..x", "/x")] path: &str) {
        assert_eq!(check_device_path(path), Ok(()));
    }

    #[rstest]
    fn odd_paths_are_refused(
        #[values(
            "",
            "dev/xvda",
            "/",
            "/dev/",
            "/dev//x",
            "/dev/../x",
            "/./x",
            "/dev/..",
            "/a\0b",
            "/dev/.ecrblk-1"
        )]
        path: &str,
    ) {
        assert!(check_device_path(path).is_err());
    }

    #[test]
    fn long_paths_are_refused() {
        assert!(check_device_path(&format!("/{}", "x".repeat(256))).is_err());
        assert!(check_device_path(&"/x".repeat(2049)).is_err());
    }
}
