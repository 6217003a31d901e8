//! The archive format of an initramfs, "newc"
//! ([`initramfs buffer format`](https://docs.kernel.org/driver-api/early-userspace/buffer-format.html)).
//!
//! The same entries always give the same bytes: no time stamps, no owners, sorted by path.

use std::collections::BTreeMap;

use crate::Error;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The entry at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, contents: Vec<u8> },
    Link { target: String },
    CharacterDevice { mode: u32, major: u32, minor: u32 },
}

/// An archive under construction. Parent directories are added where they are missing.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Adds a directory, or sets its mode.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.insert(path, Entry::Directory { mode });
    }

    /// Adds a file; a later one replaces an earlier one.
    pub fn file(&mut self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) {
        self.insert(path, Entry::File { mode, contents: contents.into() });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Entry::Link { target: target.to_owned() });
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.insert(path, Entry::CharacterDevice { mode, major, minor });
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].to_owned()).or_insert(Entry::Directory { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Encodes the archive.
    ///
    /// # Errors
    /// A file is larger than the format's 32 bits.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut inode = 0;
        // A parent sorts before its contents: the kernel creates the entries in order.
        for (path, entry) in &self.entries {
            inode += 1;
            let (mode, contents, device): (u32, &[u8], (u32, u32)) = match entry {
                Entry::Directory { mode } => (DIRECTORY | mode, &[], (0, 0)),
                Entry::File { mode, contents } => (FILE | mode, contents, (0, 0)),
                Entry::Link { target } => (LINK | 0o777, target.as_bytes(), (0, 0)),
                Entry::CharacterDevice { mode, major, minor } => {
                    (CHARACTER_DEVICE | mode, &[], (*major, *minor))
                }
            };
            write_entry(&mut bytes, path, inode, mode, contents, device)?;
        }
        write_entry(&mut bytes, "TRAILER!!!", 0, 0, &[], (0, 0))?;
        Ok(bytes)
    }
}

fn write_entry(
    bytes: &mut Vec<u8>,
    path: &str,
    inode: u32,
    mode: u32,
    contents: &[u8],
    device: (u32, u32),
) -> Result<(), Error> {
    let size = u32::try_from(contents.len()).map_err(|_| Error::TooLarge(path.to_owned()))?;
    let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
    // Magic, then: inode, mode, uid, gid, links, time, size, device of the archive (2), of the
    // entry (2), name size, check.
    let fields =
        [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, path.len() as u32 + 1, 0]
            .map(|f| format!("{f:08x}"));
    bytes.extend_from_slice(b"070701");
    bytes.extend_from_slice(fields.concat().as_bytes());
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(contents);
    pad(bytes);
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Read {
        path: String,
        mode: u32,
        contents: Vec<u8>,
        device: (u32, u32),
    }

    fn entry(path: &str, mode: u32, contents: &[u8], device: (u32, u32)) -> Read {
        Read { path: path.to_owned(), mode, contents: contents.to_vec(), device }
    }

    /// Decodes an archive.
    fn parse(bytes: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let digits = str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = str::from_utf8(&bytes[at + 110..at + 110 + name_size - 1]).unwrap();
            let start = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(start, bytes.len());
                return entries;
            }
            entries.push(entry(name, mode, &bytes[start..start + size], (field(9), field(10))));
            at = (start + size).next_multiple_of(4);
        }
    }

    #[test]
    fn entries_are_preceded_by_their_parents() {
        let mut archive = Archive::default();
        archive.file("/usr/bin/agent", 0o755, *b"\x7fELF!");
        archive.link("bin/sh", "busybox");
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.directory("usr", 0o700);
        let entries = parse(&archive.to_bytes().unwrap());
        let expected = [
            entry("bin", 0o040_755, b"", (0, 0)),
            entry("bin/sh", 0o120_777, b"busybox", (0, 0)),
            entry("dev", 0o040_755, b"", (0, 0)),
            entry("dev/console", 0o020_600, b"", (5, 1)),
            entry("usr", 0o040_700, b"", (0, 0)),
            entry("usr/bin", 0o040_755, b"", (0, 0)),
            entry("usr/bin/agent", 0o100_755, b"\x7fELF!", (0, 0)),
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn the_order_of_insertion_does_not_matter() {
        let (mut one, mut other) = (Archive::default(), Archive::default());
        one.file("a", 0o644, *b"1");
        one.file("b", 0o644, *b"22");
        other.file("b", 0o644, *b"22");
        other.file("a", 0o644, *b"1");
        assert_eq!(one.to_bytes().unwrap(), other.to_bytes().unwrap());
    }
}
