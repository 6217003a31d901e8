//! The disks of this host's own root.

use std::{fs, os::unix::fs::MetadataExt};

use nix::sys::stat::makedev;

use super::*;

#[test]
fn the_root_file_system_is_recognized_with_its_disk() {
    let root = fs::metadata("/").unwrap().dev();
    let disk = BlockDevice::find(Path::new(SYSFS), root).unwrap().disk().unwrap().number;
    assert!(is_root(root).unwrap() && is_root(disk).unwrap() && has_root(root).unwrap());
    let absent = makedev(4095, 7);
    assert!(!is_root(absent).unwrap() && !has_root(absent).unwrap());
}

/// Returns what a root on the last of these mounts is on.
fn found(table: &str) -> io::Result<Vec<u64>> {
    let mounts = mountinfo::parse(table.as_bytes()).unwrap();
    let mut search = RootSearch { found: Root::default(), mounts, own: 0, steps: 0 };
    search.first_process()?;
    Ok(search.found.file_systems)
}

#[test]
fn the_topmost_root_is_decisive() {
    let device = "1 0 4095:7 / / rw - ext4 /dev/absent rw\n";
    assert_eq!(found(device).unwrap(), [makedev(4095, 7)]);
    let covered = format!("{device}2 1 0:3 / / rw - tmpfs tmpfs rw\n");
    assert_eq!(found(&covered).unwrap(), [0; 0]);
}

#[test]
fn a_root_that_cannot_be_followed_is_an_error() {
    for (table, why) in [
        ("1 0 0:3 / / rw - btrfs /dev/absent rw\n", "/dev/absent cannot be found"),
        ("1 0 0:3 / / rw - overlay overlay rw,xino=off\n", "no lower directory"),
        ("1 0 0:3 / / rw - overlay overlay rw,lowerdir=/absent/l\n", "/absent/l cannot be found"),
        (
            "1 0 0:3 / / rw - overlay overlay rw,lowerdir+=/absent/\\134377\n",
            "/absent/\\377 cannot be found",
        ),
    ] {
        let error = found(table).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn all_directories_of_an_overlay_are_the_roots() {
    let root = fs::metadata("/").unwrap().dev();
    let table = |options: &str| {
        let own = fs::read_to_string("/proc/self/mountinfo").unwrap();
        format!("{own}1 0 0:99 / / rw - overlay overlay {options}\n")
    };
    let directory = tempfile::tempdir_in("/").unwrap();
    for name in ["l 1", "snapshots/u", "snapshots/w", "snapshots/2"] {
        fs::create_dir_all(directory.path().join(name)).unwrap();
    }
    let path = |name: &str| format!("{}/{name}", directory.path().display());
    // The kernel's memory, and the root's disk.
    let lower = table(&format!("ro,lowerdir=/proc:{}", path("l\\0401")));
    assert_eq!(found(&lower).unwrap(), [root]);
    // Relative to a directory above the upper one.
    let upper = format!("upperdir={},workdir={}", path("snapshots/u"), path("snapshots/w"));
    assert_eq!(found(&table(&format!("rw,lowerdir=2,{upper}"))).unwrap(), [root]);
    assert!(found(&table(&format!("rw,lowerdir=3,{upper}"))).is_err());
}
