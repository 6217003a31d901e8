//! Which mount options a request may have, by the type of the file system
//! ([mount(8)](https://man7.org/linux/man-pages/man8/mount.8.html)).
//!
//! Everything that is not listed is refused: options that open other devices or files of the guest,
//! that let an image bring device nodes or set-user-ID programs, that change what an error does to
//! the whole guest, or quotas, which the container's own files would have to hold.

/// The file systems that can be mounted, by the kernel's names.
pub const FILE_SYSTEMS: &[&str] =
    &["ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "erofs", "squashfs"];

/// The value of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// A decimal number.
    Number,
    /// A number with a suffix of size, or an octal mode.
    Size,
    /// One of these.
    One(&'static [&'static str]),
    /// One of these, with a level behind a colon; may be absent.
    Method(&'static [&'static str]),
    /// A path inside the file system.
    Path,
}

use Takes::{Method, Nothing, Number, One, Path, Size};

type Options = &'static [(&'static str, Takes)];

/// Of every file system.
const COMMON: Options = &[
    ("nodev", Nothing),
    ("nosuid", Nothing),
    ("exec", Nothing),
    ("noexec", Nothing),
    ("atime", Nothing),
    ("noatime", Nothing),
    ("relatime", Nothing),
    ("strictatime", Nothing),
    ("diratime", Nothing),
    ("nodiratime", Nothing),
    ("nosymfollow", Nothing),
    ("async", Nothing),
    ("sync", Nothing),
    ("dirsync", Nothing),
    ("lazytime", Nothing),
];

const EXT: Options = &[
    ("acl", Nothing),
    ("noacl", Nothing),
    ("user_xattr", Nothing),
    ("nouser_xattr", Nothing),
    ("barrier", Nothing),
    ("nobarrier", Nothing),
    ("commit", Number),
    ("data", One(&["journal", "ordered", "writeback"])),
    ("data_err", One(&["ignore", "abort"])),
    ("delalloc", Nothing),
    ("nodelalloc", Nothing),
    ("discard", Nothing),
    ("nodiscard", Nothing),
    ("errors", One(&["continue", "remount-ro"])),
    ("init_itable", Nothing),
    ("noinit_itable", Nothing),
    ("inode_readahead_blks", Number),
    ("journal_checksum", Nothing),
    ("nojournal_checksum", Nothing),
    ("norecovery", Nothing),
    ("noload", Nothing),
    ("stripe", Number),
];

const XFS: Options = &[
    ("allocsize", Size),
    ("discard", Nothing),
    ("nodiscard", Nothing),
    ("inode32", Nothing),
    ("inode64", Nothing),
    ("largeio", Nothing),
    ("nolargeio", Nothing),
    ("logbsize", Size),
    ("logbufs", Number),
    ("noalign", Nothing),
    ("norecovery", Nothing),
    ("nouuid", Nothing),
    ("sunit", Number),
    ("swalloc", Nothing),
    ("swidth", Number),
    ("wsync", Nothing),
];

const COMPRESSION: &[&str] = &["zlib", "lzo", "zstd", "no"];

const BTRFS: Options = &[
    ("acl", Nothing),
    ("noacl", Nothing),
    ("autodefrag", Nothing),
    ("noautodefrag", Nothing),
    ("barrier", Nothing),
    ("nobarrier", Nothing),
    ("commit", Number),
    ("compress", Method(COMPRESSION)),
    ("compress-force", Method(COMPRESSION)),
    ("datacow", Nothing),
    ("nodatacow", Nothing),
    ("datasum", Nothing),
    ("nodatasum", Nothing),
    ("discard", Method(&["sync", "async"])),
    ("nodiscard", Nothing),
    ("flushoncommit", Nothing),
    ("noflushoncommit", Nothing),
    ("max_inline", Size),
    ("space_cache", Method(&["v1", "v2"])),
    ("ssd", Nothing),
    ("nossd", Nothing),
    ("ssd_spread", Nothing),
    ("nossd_spread", Nothing),
    ("subvol", Path),
    ("subvolid", Number),
    ("user_subvol_rm_allowed", Nothing),
];

const VFAT: Options = &[
    ("check", One(&["n", "r", "s", "normal", "relaxed", "strict"])),
    ("dmask", Size),
    ("fmask", Size),
    ("umask", Size),
    ("errors", One(&["continue", "remount-ro"])),
    ("flush", Nothing),
    ("gid", Number),
    ("uid", Number),
    ("quiet", Nothing),
    ("shortname", One(&["lower", "win95", "winnt", "mixed"])),
    ("utf8", Nothing),
];

const EROFS: Options = &[
    ("acl", Nothing),
    ("noacl", Nothing),
    ("user_xattr", Nothing),
    ("nouser_xattr", Nothing),
    ("cache_strategy", One(&["disabled", "readahead", "readaround"])),
];

const SQUASHFS: Options = &[("errors", One(&["continue"]))];

/// Options that are refused with a reason of their own.
const REFUSED: &[(&str, &str)] = &[
    ("dev", "must not be: a device node on the volume would give away the guest's disks"),
    ("suid", "must not be: programs on the volume must not give rights"),
    ("ro", "must not be an option: request read-only access"),
    ("rw", "must not be an option: access decides"),
    ("errors=panic", "must not be: an error of the volume would end the whole guest"),
    ("fatal_errors=panic", "must not be: an error of the volume would end the whole guest"),
    ("remount", "must not be: detach the volume and attach it again"),
];

fn of(file_system: &str) -> Option<Options> {
    Some(match file_system {
        "ext2" | "ext3" | "ext4" => EXT,
        "xfs" => XFS,
        "btrfs" => BTRFS,
        "vfat" => VFAT,
        "erofs" => EROFS,
        "squashfs" => SQUASHFS,
        _ => return None,
    })
}

/// Checks one mount option. Without a type it has to be one of any file system.
///
/// # Errors
/// The rule that the option breaks.
pub fn check_mount_option(file_system: Option<&str>, option: &str) -> Result<(), &'static str> {
    if let Some((_, rule)) = REFUSED.iter().find(|(refused, _)| *refused == option) {
        return Err(rule);
    }
    if option.len() > 256 {
        return Err("must have at most 256 bytes");
    }
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let is_listed =
        |list: Options| list.iter().any(|(listed, takes)| *listed == name && takes.accepts(value));
    let is_of_type = match file_system {
        Some(file_system) => of(file_system).is_some_and(is_listed),
        None => FILE_SYSTEMS.iter().filter_map(|name| of(name)).any(is_listed),
    };
    if is_listed(COMMON) || is_of_type {
        return Ok(());
    }
    Err("must be a mount option that is possible for this file system: see docs/design/mounts.md")
}

impl Takes {
    fn accepts(self, value: Option<&str>) -> bool {
        let short = |text: &str| (1..=32).contains(&text.len());
        match (self, value) {
            (Nothing | Method(_), None) => true,
            (Nothing, Some(_)) | (_, None) => false,
            (Number, Some(text)) => short(text) && text.bytes().all(|byte| byte.is_ascii_digit()),
            (Size, Some(text)) => {
                let digits = text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']).unwrap_or(text);
                short(digits) && digits.bytes().all(|byte| byte.is_ascii_digit())
            }
            (One(list), Some(text)) => list.contains(&text),
            (Method(list), Some(text)) => {
                let (method, level) = text.split_once(':').unwrap_or((text, "1"));
                list.contains(&method) && Number.accepts(Some(level))
            }
            // A comma would begin another option.
            (Path, Some(text)) => {
                !text.is_empty() && !text.contains([',', '\0']) && !text.contains(char::is_control)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_system_has_its_options_and_the_common_ones() {
        for file_system in FILE_SYSTEMS {
            check_mount_option(Some(file_system), "noatime").unwrap();
            assert!(of(file_system).is_some(), "{file_system}");
        }
        check_mount_option(Some("ext4"), "commit=30").unwrap();
        check_mount_option(Some("btrfs"), "compress=zstd:3").unwrap();
        check_mount_option(Some("btrfs"), "compress").unwrap();
        check_mount_option(Some("xfs"), "logbsize=256k").unwrap();
        check_mount_option(None, "nouuid").unwrap();
    }

    #[test]
    fn what_would_reach_beyond_the_volume_is_refused() {
        let refused = [
            "dev",
            "suid",
            "errors=panic",
            "usrquota",
            "usrjquota=aquota.user",
            "grpquota",
            "prjquota",
            "journal_path=/dev/vda",
            "journal_dev=2049",
            "sb=1",
            "abort",
            "debug",
            "dax",
            "logdev=/dev/vda",
            "rtdev=/dev/vda",
            "uquota",
            "device=/dev/vda",
            "degraded",
            "rescue=all",
            "fatal_errors=panic",
            "context=x",
            "remount",
            "bind",
            "ro",
            "rw",
            "",
            "commit=",
            "commit=-1",
            "commit=1,dev",
            "data=evil",
            "noatime=1",
            "subvol=a,dev",
            "compress=zstd:x",
            "test_dummy_encryption",
        ];
        for option in refused {
            for file_system in FILE_SYSTEMS.iter().copied().map(Some).chain([None]) {
                check_mount_option(file_system, option).unwrap_err();
            }
        }
        assert!(check_mount_option(Some("ext4"), "dev").unwrap_err().contains("device node"));
    }

    #[test]
    fn an_option_of_another_file_system_is_refused() {
        check_mount_option(Some("ext4"), "nouuid").unwrap_err();
        check_mount_option(Some("squashfs"), "commit=5").unwrap_err();
        check_mount_option(Some("telepathyfs"), "commit=5").unwrap_err();
    }
}
