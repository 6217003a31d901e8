//! The file system of a volume, which the maker of its image chooses: its first bytes, what the
//! kernel says about it, and how `/proc` shows its files. And the options of its mount.
//!
//! The first byte selects the parser: `m` for the first bytes of a disk, of which the next byte
//! selects the requested type; `o` for mount options, one a line, of which the next byte selects
//! type and access; `k` for a record of the kernel's log; `p` for a line of `/proc/PID/maps`; `l`
//! for a path as a layer of an overlay.

#![no_main]

use agent_plugin::{
    api::FILE_SYSTEMS,
    fuzz::{identified, is_layer, logged, mapping, mount_options},
};
use libfuzzer_sys::fuzz_target;

/// Of mount_setattr(2).
const RDONLY: u64 = 1;
const NOSUID_AND_NODEV: u64 = 2 | 4;

/// Magic numbers, and where they are.
const MAGICS: [(&str, usize, &[u8]); 8] = [
    ("ext4", 0x438, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("vfat", 54, b"FAT12   "),
    ("vfat", 54, b"FAT16   "),
    ("vfat", 82, b"FAT32   "),
    ("erofs", 1024, b"\xe2\xe1\xf5\xe0"),
    ("squashfs", 0, b"hsqs"),
];

fuzz_target!(|input: &[u8]| {
    let Some((&parser, bytes)) = input.split_first() else { return };
    match parser {
        b'm' => magic(bytes),
        b'o' => options(bytes),
        b'k' => {
            let Some(text) = logged(bytes) else { return };
            assert!(text.len() <= 303 && !text.contains('\n'), "{text:?}");
            assert!(text.ends_with('…') || text.contains("sda"), "{text:?}");
        }
        b'p' => path_of_mapping(bytes),
        b'l' => layer(bytes),
        _ => {}
    }
});

/// The versions of ext are one format.
fn format(kind: &str) -> &str {
    if kind.starts_with("ext") { "ext4" } else { kind }
}

fn magic(input: &[u8]) {
    let Some((&selector, bytes)) = input.split_first() else { return };
    let requested = FILE_SYSTEMS.get(usize::from(selector)).copied();
    let there: Vec<_> = MAGICS
        .iter()
        .filter(|(_, at, magic)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(kind, ..)| *kind)
        .collect();
    match identified(bytes, requested) {
        Ok(kind) => {
            assert!(there.contains(&format(kind)), "{kind} is not in {there:?}");
            assert!(requested.is_none_or(|requested| requested == kind));
            let is_one = there.iter().all(|other| *other == format(kind));
            assert!(requested.is_some() || is_one, "{kind} was guessed from {there:?}");
        }
        Err(error) => {
            assert!(!error.contains(char::is_control) && error.starts_with("sda has "), "{error}");
            let is_there = |kind: &str| there.contains(&format(kind));
            assert!(!requested.is_some_and(is_there), "{error}");
        }
    }
}

fn options(input: &[u8]) {
    let Some((&selector, text)) = input.split_first() else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    let (kind, read_only) = (FILE_SYSTEMS[usize::from(selector >> 1) % 8], selector & 1 == 1);
    let list: Vec<String> = text.lines().map(str::to_owned).collect();
    let Some((attributes, parameters)) = mount_options(kind, &list, read_only) else { return };
    assert_eq!(attributes & NOSUID_AND_NODEV, NOSUID_AND_NODEV, "{list:?}");
    assert_eq!(attributes & RDONLY == RDONLY, read_only, "{list:?}");
    let is_ro = |(name, _): &(String, Option<String>)| name == "ro";
    assert_eq!(parameters.iter().filter(|it| is_ro(it)).count(), usize::from(read_only));
    let has_errors = parameters.iter().any(|(name, _)| name == "errors");
    assert!(has_errors || !kind.starts_with("ext"), "{parameters:?}");
    for (name, value) in parameters.iter().filter(|it| !is_ro(it)) {
        let whole = value.as_ref().map_or(name.clone(), |value| format!("{name}={value}"));
        // The superblock of ext2 to ext4 does not decide what an error does.
        let is_default = whole == "errors=remount-ro" && kind.starts_with("ext");
        assert!(list.contains(&whole) || is_default, "{whole} is not in {list:?}");
        for part in ["dev", "suid", "quota", "jqfmt", "journal_path", "remount"] {
            assert!(!name.contains(part), "{whole}");
        }
        assert!(name != "rw" && value.as_deref() != Some("panic"), "{whole}");
        let is_plain = |text: &str| !text.contains([',', '\0', '\n']);
        assert!(is_plain(name) && value.as_deref().is_none_or(is_plain), "{whole:?}");
    }
}

/// Escapes a path as the kernel does in this file, and reads it back.
fn path_of_mapping(path: &[u8]) {
    let _ = mapping(path);
    if path.contains(&0) || path.contains(&b'\\') {
        return;
    }
    let mut line = b"7f00-7f01 r-xp 00000000 fe:1a 1234                       /".to_vec();
    for &byte in path {
        match byte {
            b'\n' => line.extend(b"\\012"),
            byte => line.push(byte),
        }
    }
    let (number, found) = mapping(&line).expect("a mapping of a file");
    assert_eq!((number.major, number.minor), (0xfe, 0x1a));
    assert_eq!(found, [b"/", path].concat(), "{line:?}");
}

/// A layer at a mount point and below it is found, and one beside it is not.
fn layer(path: &[u8]) {
    let _ = is_layer(path, b"/data");
    if path.is_empty() || path.iter().any(|byte| b":,\\\0 \t\n".contains(byte)) {
        return;
    }
    let point = [b"/", path].concat();
    for below in [&b""[..], b"/", b"/x", b":/other"] {
        let options = [b"rw,lowerdir=/first:", &point[..], below, b",index=off"].concat();
        assert!(is_layer(&options, &point), "{options:?}");
    }
    let beside = [b"rw,lowerdir=", &point[..], b"x,upperdir=/u"].concat();
    assert_eq!(is_layer(&beside, &point), point == b"/u", "{beside:?}");
}
