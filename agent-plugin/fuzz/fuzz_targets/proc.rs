//! Files in /proc that contain names chosen by a container: mounts of every namespace, cgroups.
//!
//! The first byte selects the parser: `m` for a mountinfo, `p` for a path in a mountinfo, `c` for
//! `/proc/cgroups`, `g` for `/proc/PID/cgroup`.

#![no_main]

use std::path::Path;

use agent_plugin::{
    cgroup::hierarchy::Hierarchies,
    fuzz::mount,
    procfs::cgroup::{is_devices_unattached, unified_group},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&parser, bytes)) = input.split_first() else { return };
    if parser == b'p' {
        return path(bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    match parser {
        b'm' => mountinfo(&text),
        b'c' => {
            let shown = is_devices_unattached(&text);
            let line = text.lines().any(|line| line.trim_start().starts_with("devices"));
            assert!(!shown || line);
        }
        b'g' => {
            let group = unified_group(&text);
            assert_eq!(group.is_some(), text.lines().any(|line| line.starts_with("0::")));
        }
        _ => {}
    }
});

fn mountinfo(text: &str) {
    let Hierarchies { devices, unified } = Hierarchies::parse(text);
    assert!(devices.is_none() || text.contains(" - cgroup ") && text.contains("devices"));
    assert!(unified.is_none() || text.contains(" - cgroup2 "));
    for (number, _, kind, _) in text.lines().filter_map(mount) {
        assert!(!kind.contains(' '));
        assert!(
            text.contains(&number.to_string()) || text.contains(['+', '0']),
            "{number} in {text:?}"
        );
    }
}

/// Escapes a path as the kernel does and parses it.
fn path(path: &[u8]) {
    if path.is_empty() || path.contains(&0) {
        return;
    }
    let mut escaped = String::new();
    for character in String::from_utf8_lossy(path).chars() {
        match character {
            ' ' | '\t' | '\n' | '\\' | '#' => {
                escaped.push_str(&format!("\\{:03o}", u32::from(character)))
            }
            _ => escaped.push(character),
        }
    }
    let path = String::from_utf8_lossy(path);
    // A mount point is absolute; a source is any text.
    let line = format!("33 28 8:16 / /{escaped} rw,relatime shared:9 - cgroup2 {escaped} rw");
    let found = Hierarchies::parse(&line).unified.expect("a mount of all of v2");
    assert_eq!(found, Path::new(&format!("/{path}")), "{line:?}");
    let (number, point, kind, source) = mount(&line).expect("a mount");
    assert_eq!((number.major, number.minor, kind.as_str()), (8, 16, "cgroup2"));
    assert_eq!((point.strip_prefix('/'), source.as_str()), (Some(&*path), &*path), "{line:?}");
}
