//! Files in /proc that contain names chosen by a container: mounts of every namespace, cgroups,
//! processes, swap. All of it is bytes.
//!
//! The first byte selects the parser: `m` for a mountinfo, `p` for a path in a mountinfo, `c` for
//! `/proc/cgroups`, `g` for `/proc/PID/cgroup`, `s` for the name in `/proc/PID/stat`, `f` for
//! `/proc/PID/fdinfo/FD`, `w` for `/proc/swaps`, `d` for a `devices.list`, `u` for a `uid_map`, `n`
//! for a name that is shown.

#![no_main]

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use agent_plugin::{
    cgroup::hierarchy::Hierarchies,
    fuzz::{id_outside, is_listed, mount, shown, swap_devices},
    procfs::{
        cgroup::{device_group, is_devices_unattached, unified_group},
        fdinfo,
        stat::{is_kernel_thread, start_time},
    },
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&parser, bytes)) = input.split_first() else { return };
    match parser {
        b'm' => mountinfo(bytes),
        b'p' => path(bytes),
        b'c' => {
            let found = is_devices_unattached(bytes);
            assert!(!found || lines(bytes).any(|line| line.trim_ascii().starts_with(b"devices")));
        }
        b'g' => groups(bytes),
        b's' => stat(bytes),
        b'f' => {
            assert!(fdinfo::pid(bytes).is_none_or(|pid| pid > 0 && contains(bytes, b"Pid:")));
        }
        b'w' => swap(bytes),
        b'd' => assert!(!is_listed(bytes) || contains(bytes, b":")),
        b'u' => assert!(id_outside(bytes, 0).is_none() || bytes.iter().any(u8::is_ascii_digit)),
        b'n' => name(bytes),
        _ => {}
    }
});

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn mountinfo(text: &[u8]) {
    let Hierarchies { devices, unified } = Hierarchies::parse(text);
    assert!(devices.is_none() || contains(text, b" - cgroup ") && contains(text, b"devices"));
    assert!(unified.is_none() || contains(text, b" - cgroup2 "));
    for (number, [_, kind, _]) in lines(text).filter_map(mount) {
        assert!(!kind.contains(&b' '));
        let shown = contains(text, number.to_string().as_bytes());
        assert!(shown || text.contains(&b'+') || text.contains(&b'0'), "{number} in {text:?}");
    }
}

/// Escapes a path as the kernel does.
fn escaped(path: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in path {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => {
                escaped.extend(format!("\\{byte:03o}").into_bytes());
            }
            _ => escaped.push(byte),
        }
    }
    escaped
}

/// Escapes a path as the kernel does and parses it.
fn path(path: &[u8]) {
    if path.is_empty() || path.contains(&0) {
        return;
    }
    // A mount point is absolute; a source is any text.
    let escaped = escaped(path);
    let line: Vec<u8> = [
        b"33 28 8:16 / /",
        &escaped[..],
        b" rw,relatime shared:9 - cgroup2 ",
        &escaped[..],
        b" rw",
    ]
    .concat();
    let found = Hierarchies::parse(&line).unified.expect("a mount of all of v2");
    let absolute = [b"/", path].concat();
    assert_eq!(found, Path::new(OsStr::from_bytes(&absolute)), "{line:?}");
    let (number, [point, kind, source]) = mount(&line).expect("a mount");
    assert_eq!((number.major, number.minor, &kind[..]), (8, 16, &b"cgroup2"[..]));
    assert_eq!((&point[..], &source[..]), (&absolute[..], path), "{line:?}");
}

fn groups(text: &[u8]) {
    let group = unified_group(text);
    assert_eq!(group.is_some(), lines(text).any(|line| line.starts_with(b"0::")));
    assert!(group.is_none() || device_group(text).is_some());
    assert!(group.is_none_or(|group| !group.as_os_str().as_bytes().contains(&b'\n')));
}

/// A name cannot pretend to be the fields behind it.
fn stat(name: &[u8]) {
    let stat =
        [b"7 (", name, b") S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 4096 1\n"].concat();
    assert_eq!((start_time(&stat), is_kernel_thread(&stat)), (Some(123_456), false), "{stat:?}");
    let _ = start_time(name);
}

fn swap(path: &[u8]) {
    let text =
        [b"Filename Type Size Used Priority\n", &escaped(path)[..], b" partition\t8188\n"].concat();
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let expected = if path.is_empty() { Vec::new() } else { vec![path.to_vec()] };
    assert_eq!(swap_devices(&text), expected, "{text:?}");
    let _ = swap_devices(path);
}

fn name(name: &[u8]) {
    let line = shown(name);
    assert!(line.len() < 400 && !line.contains(char::is_control), "{line:?}");
}
