//! File systems that show the files of others:
//! [overlayfs](https://www.kernel.org/doc/html/latest/filesystems/overlayfs.html) and eCryptfs. A
//! file there is the same as the one below it, but has another device number and another inode, and
//! leases and claims on one are not seen on the other.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::AsFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
};

use nix::sys::statfs::{ECRYPTFS_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, fstatfs};

use super::kernel_text;

/// Other file systems of this kind, which are not a part of Linux: Aufs, shiftfs.
const OTHERS: [FsType; 2] = [FsType(0x6175_6673), FsType(0x6a65_6a62)];

/// Whether `file` is on a file system that shows the files of others.
pub(crate) fn is_stacked(file: impl AsFd) -> io::Result<bool> {
    let kind = fstatfs(file)?.filesystem_type();
    Ok([OVERLAYFS_SUPER_MAGIC, ECRYPTFS_SUPER_MAGIC].contains(&kind) || OTHERS.contains(&kind))
}

/// Whether a file system of this type, as mount tables have it, shows the files of others.
pub(crate) fn is_stacked_kind(kind: &OsStr) -> bool {
    [&b"overlay"[..], b"ecryptfs", b"aufs", b"shiftfs"].contains(&kind.as_bytes())
}

/// The directories that an overlay consists of, as whoever mounted it named them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Directories {
    /// Those that are only read.
    pub(crate) lower: Vec<PathBuf>,
    /// The upper and the work directory, if it can be written.
    pub(crate) upper: Vec<PathBuf>,
}

impl Directories {
    /// Finds them in the options of a mount table.
    ///
    /// # Errors
    /// There are none.
    pub(crate) fn of(options: &[u8]) -> io::Result<Self> {
        let mut found = Self::default();
        // A comma in a value is escaped.
        for option in options.split(|&byte| byte == b',') {
            let Some(equals) = option.iter().position(|&byte| byte == b'=') else { continue };
            let value = kernel_text::unescape(&option[equals + 1..]);
            match &option[..equals] {
                b"lowerdir" => found.lower.extend(list(&value)),
                // These take one directory, without a backslash before a colon.
                b"lowerdir+" | b"datadir+" => found.lower.push(value.into()),
                b"upperdir" | b"workdir" => found.upper.extend(list_of_one(&value)),
                _ => {}
            }
        }
        if found.lower.is_empty() {
            let why = "the options of an overlay name no lower directory";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(found)
    }
}

/// Splits directories at their colons; two of them precede a directory that has data only. A
/// backslash keeps the character after it from being a separator.
fn list(value: &OsStr) -> Vec<PathBuf> {
    split(value, Some(b':'))
        .into_iter()
        .filter(|directory| !directory.is_empty())
        .map(Into::into)
        .collect()
}

fn list_of_one(value: &OsStr) -> Vec<PathBuf> {
    split(value, None).into_iter().map(Into::into).collect()
}

fn split(value: &OsStr, separator: Option<u8>) -> Vec<OsString> {
    let mut parts = vec![Vec::new()];
    let mut bytes = value.as_bytes().iter().copied();
    while let Some(byte) = bytes.next() {
        if Some(byte) == separator {
            parts.push(Vec::new());
            continue;
        }
        let byte = if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte };
        if let Some(part) = parts.last_mut() {
            part.push(byte);
        }
    }
    parts.into_iter().map(OsString::from_vec).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn escaped_directories_are_read() {
        let options = b"rw,lowerdir=/l\\134:1:/l\\0402::/data\\054\xff,upperdir=/u\\134\\134:x,workdir=/w,xino=on";
        let found = Directories::of(options).unwrap();
        let data = Path::new(OsStr::from_bytes(b"/data,\xff"));
        assert_eq!(found.lower, [Path::new("/l:1"), Path::new("/l 2"), data]);
        assert_eq!(found.upper, ["/u\\:x", "/w"].map(Path::new));
    }

    #[test]
    fn directories_that_were_added_one_by_one_are_read() {
        let found = Directories::of(b"ro,lowerdir+=/a:b,lowerdir+=c,datadir+=/d").unwrap();
        assert_eq!(found.lower, ["/a:b", "c", "/d"].map(Path::new));
        assert_eq!(found.upper, [] as [PathBuf; 0]);
    }

    #[test]
    fn an_overlay_without_directories_is_an_error() {
        assert!(Directories::of(b"rw,xino=off").is_err() && Directories::of(b"").is_err());
    }

    #[test]
    fn an_ordinary_file_system_is_not_stacked() {
        assert!(!is_stacked(tempfile::tempfile().unwrap()).unwrap());
    }
}
