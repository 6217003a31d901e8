//! From the mount to its end.

use std::{fs, process::Command, thread};

use agent_plugin::{
    file_system::{Kind, Owners, Space},
    mounted::{unmount_everywhere, unmount_in},
};
use rstest::rstest;

use super::{
    container::{start, start_with_user_namespace},
    disk::{Disk, MIB, run},
    mount::{How, PATH, alone, mount, mounting, reach, soon, unmount},
};

#[rstest]
#[case(Kind::Ext4)]
#[case(Kind::Xfs)]
#[case(Kind::Btrfs)]
fn a_file_system_is_mounted_used_and_unmounted(#[case] kind: Kind) {
    let _alone = alone();
    let (container, disk) = (start(""), Disk::with(kind));
    let mounting = mount(&container, &disk, How::default()).unwrap();
    assert_eq!(mounting.parents_made(), ["/srv/data", "/srv/data/deep"]);
    drop(mounting);
    container.run(&["sh", "-c", "echo kept >/srv/data/deep/file; sync"]);
    let options = container.run(&["findmnt", "-n", "-o", "FSTYPE,OPTIONS,PROPAGATION", PATH]);
    let options = String::from_utf8(options.stdout).unwrap();
    for word in [kind.name(), "nodev", "nosuid", "private"] {
        assert!(options.contains(word), "{options}");
    }
    assert!(!disk.is_free());
    let done = unmount(&container, &disk).unwrap();
    assert_eq!((done.count, done.busy, done.left), (1, false, vec![]));
    assert!(disk.is_free(), "the superblock is gone");
    mount(&container, &disk, How { read_only: true, ..How::default() }).unwrap();
    let read = container.run(&["cat", "/srv/data/deep/file"]);
    assert_eq!(read.stdout, b"kept\n");
    container.fails(&["touch", "/srv/data/deep/x"]);
    let info = container.run(&["findmnt", "-n", "-o", "VFS-OPTIONS,FS-OPTIONS", PATH]);
    let info = String::from_utf8(info.stdout).unwrap();
    assert_eq!(info.split_whitespace().filter(|list| list.starts_with("ro")).count(), 2, "{info}");
    assert_eq!(unmount(&container, &disk).unwrap().count, 1);
}

#[test]
fn a_rollback_leaves_nothing_whether_it_was_published_or_not() {
    let _alone = alone();
    let (container, disk) = (start(""), Disk::with(Kind::Ext4));
    let mut unpublished = mounting(&container, &disk, How::default()).unwrap();
    assert!(!disk.is_free());
    unpublished.remove(soon()).unwrap();
    assert!(disk.is_free());
    let mut published = mount(&container, &disk, How::default()).unwrap();
    published.remove(soon()).unwrap();
    assert!(disk.is_free());
    assert_eq!(container.list("/srv"), ["inside"]);
}

#[test]
fn what_is_used_is_not_unmounted_but_by_force() {
    let _alone = alone();
    let (container, disk) = (start(""), Disk::with(Kind::Ext4));
    mount(&container, &disk, How::default()).unwrap();
    let pid = container.pid().to_string();
    let mut user = Command::new("nsenter")
        .args(["--target", &pid, "--mount", "--root", "--wd"])
        .args(["sh", "-c", "cd /srv/data/deep && exec sleep 600"])
        .spawn()
        .unwrap();
    // The link is a path in the namespace, whose root is not the container's.
    let is_there = |link: std::path::PathBuf| link.ends_with(PATH.trim_start_matches('/'));
    while !fs::read_link(format!("/proc/{}/cwd", user.id())).is_ok_and(is_there)
        || fs::read(format!("/proc/{}/comm", user.id())).unwrap() != b"sleep\n"
    {
        thread::yield_now();
    }
    let done = unmount(&container, &disk).unwrap();
    assert_eq!((done.count, done.busy), (0, true));
    let lazily = unmount_in(&container.target, disk.identity(), (true, true), soon()).unwrap();
    assert_eq!((lazily.count, lazily.busy), (1, false));
    assert!(!disk.is_free(), "the superblock lives on");
    let superblock = reach(&disk, Kind::Ext4).unwrap();
    superblock.write_back().unwrap();
    assert!(superblock.shut_down().unwrap());
    drop(superblock);
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(disk.is_free());
}

#[test]
fn by_force_copies_in_other_namespaces_go_too() {
    let _alone = alone();
    let (container, disk) = (start(""), Disk::with(Kind::Ext4));
    mount(&container, &disk, How::default()).unwrap();
    let pid = container.pid().to_string();
    let mut copy = Command::new("nsenter")
        .args(["--target", &pid, "--mount", "unshare", "--mount", "sleep", "600"])
        .spawn()
        .unwrap();
    while fs::read(format!("/proc/{}/comm", copy.id())).unwrap() != b"sleep\n" {
        thread::yield_now();
    }
    assert_eq!(unmount(&container, &disk).unwrap().count, 1);
    assert!(!disk.is_free(), "the copy keeps it");
    unmount_everywhere(&container.target.id, &disk.identity(), soon());
    assert!(disk.is_free());
    copy.kill().unwrap();
    copy.wait().unwrap();
}

#[test]
fn a_mount_that_was_moved_is_found_again() {
    let _alone = alone();
    let (container, disk) = (start("mkdir $root/srv/elsewhere"), Disk::with(Kind::Ext4));
    mount(&container, &disk, How::default()).unwrap();
    container.run(&["mount", "--move", PATH, "/srv/elsewhere"]);
    assert_eq!(unmount(&container, &disk).unwrap().count, 1);
    assert!(disk.is_free());
}

#[test]
fn a_user_namespace_gets_an_idmapped_mount() {
    let _alone = alone();
    let (container, disk) = (start_with_user_namespace(""), Disk::with(Kind::Ext4));
    mount(&container, &disk, How::default()).unwrap();
    assert_eq!(container.stat("%u:%g", PATH), "0:0");
    container.run(&["sh", "-c", "echo x >/srv/data/deep/file"]);
    assert_eq!(unmount(&container, &disk).unwrap().count, 1);
    let plain = start("");
    mount(&plain, &disk, How::default()).unwrap();
    assert_eq!(plain.stat("%u:%g", "/srv/data/deep/file"), "0:0", "as on the disk");
    assert_eq!(unmount(&plain, &disk).unwrap().count, 1);
}

#[test]
fn files_are_given_to_a_group() {
    let _alone = alone();
    let (container, disk) = (start(""), Disk::with(Kind::Ext4));
    let owners = Some(Owners { gid: 77, always: false });
    mount(&container, &disk, How { owners, ..How::default() }).unwrap();
    assert_eq!(container.stat("%g %a", PATH), "77 2775");
    assert_eq!(container.stat("%g %a", "/srv/data/deep/lost+found"), "77 2770");
    assert_eq!(unmount(&container, &disk).unwrap().count, 1);
}

#[rstest]
#[case(Kind::Ext4)]
#[case(Kind::Xfs)]
#[case(Kind::Btrfs)]
fn a_mounted_file_system_grows_with_its_disk(#[case] kind: Kind) {
    let _alone = alone();
    let (container, disk) = (start(""), Disk::with(kind));
    mount(&container, &disk, How::default()).unwrap();
    let size = 640 * MIB;
    disk.image.as_file().set_len(size).unwrap();
    run(&["losetup", "--set-capacity", &disk.node()]);
    let superblock = reach(&disk, kind).unwrap();
    let before: Space = superblock.space().unwrap();
    if kind == Kind::Ext4 && !may_resize_ext4() {
        assert!(superblock.grow(size).unwrap_err().contains("CAP_SYS_RESOURCE"));
        return;
    }
    superblock.grow(size).unwrap();
    let after = superblock.space().unwrap();
    assert!(after.bytes > before.bytes + 200 * MIB, "{before:?} {after:?}");
    superblock.grow(size).unwrap();
    drop(superblock);
    assert_eq!(unmount(&container, &disk).unwrap().count, 1);
    assert!(disk.is_free());
}

/// Whether this process has CAP_SYS_RESOURCE.
fn may_resize_ext4() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & 1 << 24 != 0
}
