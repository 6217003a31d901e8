//! What the kernel prints of this host: mount tables with overlays, swap, credentials. Users decide
//! many of the bytes in it.

#![no_main]

use std::os::unix::ffi::OsStrExt;

use host_trigger::fuzz::{credentials, mounts, swaps, unescape};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // What the kernel escapes is read back.
    let mut escaped = Vec::new();
    for &byte in input {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
            _ => escaped.push(byte),
        }
    }
    assert_eq!(unescape(&escaped).as_bytes(), input);
    // A mount whose point has these bytes hides no other mount.
    let line = |point: &[u8]| {
        [b"1 0 8:1 / ", point, b" rw - overlay x rw,lowerdir=/l,upperdir=/u,workdir=/w\n"].concat()
    };
    let table = [line(b"/first"), line(&escaped), line(b"/last")].concat();
    let found = mounts(&table).expect("the kernel writes such lines");
    assert_eq!(found.len(), 3 + 3 * 3);
    assert_eq!(found[1].as_os_str().as_bytes(), input);
    // A table that cannot be read whole is not read.
    let lines = input.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
    if let Some(found) = mounts(input) {
        assert!(found.len() >= lines);
    }
    assert!(swaps(input).iter().all(|path| !path.as_os_str().is_empty()));
    credentials(input);
});
