//! What is on a disk, by the magic numbers of superblocks: a bounded number of bytes is read, and
//! nothing of them is believed but that number. The kernel alone parses the rest.

use std::{fs::File, os::unix::fs::FileExt as _};

use nix::fcntl::OFlag;

use super::kind::Kind;
use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    fault,
    file_system_error::FileSystemError,
    node::open_block_device,
};

/// The last superblock of these, that of btrfs, begins at 64 KiB.
const READ: usize = 68 << 10;

/// A magic number and where it is.
type Magic = (usize, &'static [u8]);

const OF_KINDS: &[(Kind, Magic)] = &[
    (Kind::Ext4, (0x438, &[0x53, 0xef])),
    (Kind::Xfs, (0, b"XFSB")),
    (Kind::Btrfs, (0x1_0040, b"_BHRfS_M")),
    (Kind::Vfat, (54, b"FAT12   ")),
    (Kind::Vfat, (54, b"FAT16   ")),
    (Kind::Vfat, (82, b"FAT32   ")),
    (Kind::Erofs, (1024, &[0xe2, 0xe1, 0xf5, 0xe0])),
    (Kind::Squashfs, (0, b"hsqs")),
];

/// What else may be there, for a message.
const OTHERS: &[(&str, Magic)] = &[
    ("a LUKS header", (0, b"LUKS\xba\xbe")),
    ("an LVM physical volume", (536, b"LVM2 001")),
    ("a swap area", (4086, b"SWAPSPACE2")),
    ("the file system f2fs", (1024, &[0x10, 0x20, 0xf5, 0xf2])),
    ("the file system ntfs", (3, b"NTFS    ")),
    ("the file system exfat", (3, b"EXFAT   ")),
    ("the file system iso9660", (0x8001, b"CD001")),
    ("a partition table", (512, b"EFI PART")),
    ("a partition table", (510, &[0x55, 0xaa])),
];

/// Decides how a disk is to be mounted: by the type that is requested, if it is the one that is
/// there, else by the superblock.
///
/// # Errors
/// There is another one or none, or the disk cannot be read.
pub(super) fn identify(device: &str, disk: &File, requested: Option<Kind>) -> Result<Kind> {
    decide(device, &beginning(device, disk)?, requested)
}

/// As [`identify`], by the first bytes of the disk.
pub(crate) fn decide(device: &str, bytes: &[u8], requested: Option<Kind>) -> Result<Kind> {
    let device = || device.to_owned();
    let found = kinds(bytes);
    match (&found[..], requested) {
        ([], _) if fault::skips("magic") => Ok(requested.unwrap_or(Kind::Ext4)),
        ([], _) => Err(FileSystemError::None { device: device(), found: described(bytes) }.into()),
        (found, Some(requested)) => match found.iter().find(|found| found.is_like(requested)) {
            Some(_) => Ok(requested),
            None => {
                let (found, requested) = (found[0].name(), requested.name());
                Err(FileSystemError::Mismatch { device: device(), found, requested }.into())
            }
        },
        ([one], None) => Ok(*one),
        ([one, other, ..], None) => {
            let (one, other) = (one.name(), other.name());
            Err(FileSystemError::Ambiguous { device: device(), one, other }.into())
        }
    }
}

impl Kind {
    /// The type of what is on a disk.
    ///
    /// # Errors
    /// As [`identify`].
    pub fn of(disk: &str, number: DeviceNumber) -> Result<Kind> {
        let file = open_block_device(disk, number, OFlag::O_RDONLY);
        identify(disk, &file.map_err(Error::system("open", &disk))?, None)
    }
}

/// The first bytes; fewer of a small disk.
fn beginning(device: &str, disk: &File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; READ];
    let mut filled = 0;
    while filled < READ {
        match disk.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::system("read", &device)(error)),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn has(bytes: &[u8], (at, magic): Magic) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

fn kinds(bytes: &[u8]) -> Vec<Kind> {
    let mut found: Vec<Kind> = Vec::new();
    for (kind, magic) in OF_KINDS {
        if has(bytes, *magic) && !found.contains(kind) {
            found.push(*kind);
        }
    }
    found
}

fn described(bytes: &[u8]) -> &'static str {
    if bytes.iter().all(|byte| *byte == 0) {
        return "nothing in its first sectors";
    }
    match OTHERS.iter().find(|(_, magic)| has(bytes, *magic)) {
        Some((name, _)) => name,
        None => "data of an unknown format",
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn disk(parts: &[(usize, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at as u64).unwrap();
        }
        file
    }

    #[rstest]
    #[case::ext(&[(0x438, &b"\x53\xef"[..])], Kind::Ext4)]
    #[case::xfs(&[(0, &b"XFSB"[..])], Kind::Xfs)]
    #[case::btrfs(&[(0x10040, &b"_BHRfS_M"[..])], Kind::Btrfs)]
    #[case::vfat(&[(82, &b"FAT32   "[..]), (510, &b"\x55\xaa"[..])], Kind::Vfat)]
    #[case::erofs(&[(1024, &b"\xe2\xe1\xf5\xe0"[..])], Kind::Erofs)]
    #[case::squashfs(&[(0, &b"hsqs"[..])], Kind::Squashfs)]
    fn a_superblock_tells_the_type(#[case] parts: &[(usize, &[u8])], #[case] kind: Kind) {
        let disk = disk(parts);
        assert_eq!(identify("sda", &disk, None).unwrap(), kind);
        assert_eq!(identify("sda", &disk, Some(kind)).unwrap(), kind);
        let other = if kind == Kind::Xfs { Kind::Ext3 } else { Kind::Xfs };
        let error = identify("sda", &disk, Some(other)).unwrap_err().to_string();
        let expected = format!("sda has the file system {kind}, and {other} is requested");
        assert!(error.starts_with(&expected), "{error}");
    }

    #[test]
    fn an_older_version_of_ext_is_mounted_as_requested() {
        let disk = disk(&[(0x438, b"\x53\xef")]);
        assert_eq!(identify("sda", &disk, Some(Kind::Ext2)).unwrap(), Kind::Ext2);
    }

    #[test]
    fn two_superblocks_need_a_decision() {
        let disk = disk(&[(0x438, b"\x53\xef"), (0, b"XFSB")]);
        identify("sda", &disk, None).unwrap_err();
        assert_eq!(identify("sda", &disk, Some(Kind::Xfs)).unwrap(), Kind::Xfs);
    }

    #[rstest]
    #[case(&[], "nothing in its first sectors")]
    #[case(&[(0, &b"x"[..])], "data of an unknown format")]
    #[case(&[(510, &b"\x55\xaa"[..])], "a partition table")]
    #[case(&[(0, &b"LUKS\xba\xbe"[..])], "a LUKS header")]
    fn what_is_no_file_system_is_named(#[case] parts: &[(usize, &[u8])], #[case] found: &str) {
        let error = identify("sda", &disk(parts), Some(Kind::Ext4)).unwrap_err().to_string();
        assert!(error.contains(found), "{error}");
    }

    #[test]
    fn a_disk_may_be_smaller_than_what_is_read() {
        let tiny = disk(&[(0, b"hsqs")]);
        tiny.set_len(512).unwrap();
        assert_eq!(identify("sda", &tiny, None).unwrap(), Kind::Squashfs);
        tiny.set_len(0).unwrap();
        identify("sda", &tiny, None).unwrap_err();
    }
}
