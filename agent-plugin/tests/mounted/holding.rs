//! Whatever uses a mounted file system is named.

use std::{
    fs, iter,
    path::Path,
    process::{self, Command},
    thread,
};

use agent_plugin::{
    Holder, HolderKind,
    block::BlockDevice,
    file_system::{Kind, Space},
    holders::{self, OwnMount, Scope},
    mounted::unmount_in,
    scsi::{ScsiAddress, ScsiDevice},
};
use rstest::rstest;

use super::{
    container::{Fixture, start},
    disk::Disk,
    loop_device::LoopDevice,
    mount::{How, PATH, alone, mount, soon, unmount},
};

/// Whether a process is this test, or a descendant of it. Whatever else runs on the machine opens
/// loop devices, too, each for a moment: `losetup` while it looks for a free one, `ecr-runtime` and
/// the plugin in other tests while they look for what is over what.
fn is_of_this_test(pid: u32) -> bool {
    let parent = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    iter::successors(Some(pid), |pid| parent(*pid)).any(|pid| pid == process::id())
}

/// The holders of a mounted disk, in words, without the processes of others.
fn holders(container: &Fixture, disk: &Disk) -> Vec<String> {
    use std::os::linux::fs::MetadataExt as _;
    let address = ScsiAddress { target: 0, lun: 1 };
    let device = ScsiDevice { host: 0, address };
    let block = BlockDevice { device, name: disk.name.clone(), number: disk.number };
    let namespace = fs::metadata(format!("/proc/{}/ns/mnt", container.pid())).unwrap().st_ino();
    let mounted = OwnMount {
        identity: disk.identity(),
        namespace: Some(namespace),
        numbers: vec![disk.number],
    };
    let disk = holders::Disk::new("s1", PATH, &block).unwrap().mounted(mounted);
    let scan = holders::find(&[disk], &[&container.target], Scope::All, soon()).unwrap();
    let holders = scan.certain().unwrap().into_iter().map(|found| found.holder);
    let is_ours = |h: &Holder| h.kind != HolderKind::Process || is_of_this_test(h.pid);
    holders.filter(is_ours).map(|holder| holder.to_string()).collect()
}

#[rstest]
#[case::an_open_file("exec 3>$d/file; exec sleep 600", "(sleep) with ", "/srv/data/deep/file")]
#[case::a_working_directory("cd $d; exec sleep 600", "(sleep) with ", "deep (working directory)")]
#[case::a_program(
    "cp $(command -v sleep) $d/nap; exec $d/nap 600",
    "(nap) with ",
    "deep/nap (mapped)"
)]
#[case::a_copy("exec unshare --mount sleep 600", "mount ", "/srv/data/deep (ext4)")]
#[case::a_nested_mount(
    "mkdir $d/t; mount -t tmpfs t $d/t; exec sleep 600",
    "mount ",
    "deep/t (tmpfs)"
)]
#[case::a_bind_mount(
    "mkdir /srv/b; mount --bind $d /srv/b; exec sleep 600",
    "mount ",
    "/srv/b (ext4)"
)]
#[case::an_overlay(
    "mkdir $d/u $d/w /srv/o; mount -t overlay -o lowerdir=/srv/data,upperdir=$d/u,workdir=$d/w o /srv/o; exec sleep 600",
    "mount ",
    "/srv/o (overlay)"
)]
fn each_kind_of_holder_is_named(#[case] script: &str, #[case] kind: &str, #[case] detail: &str) {
    let _alone = alone();
    let (container, disk) = (start(""), Disk::with(Kind::Ext4));
    mount(&container, &disk, How::default()).unwrap();
    assert_eq!(holders(&container, &disk), Vec::<String>::new(), "its own mount is none");
    let (pid, script) = (container.pid().to_string(), format!("set -e; d={PATH}; {script}"));
    let mut user = Command::new("nsenter")
        .args(["--target", &pid, "--mount", "--root", "--wd", "sh", "-c", &script])
        .spawn()
        .unwrap();
    let is_there = || fs::read(format!("/proc/{}/comm", user.id())).unwrap();
    while !matches!(&is_there()[..], b"sleep\n" | b"nap\n") {
        thread::yield_now();
    }
    let found = holders(&container, &disk);
    user.kill().unwrap();
    user.wait().unwrap();
    let is_it = |holder: &String| holder.contains(kind) && holder.contains(detail);
    assert!(found.iter().any(is_it), "{found:?}");
    let done = unmount_in(&container.target, disk.identity(), (true, true), soon()).unwrap();
    assert!(done.count > 0);
}

#[test]
fn a_loop_device_of_a_file_on_it_is_a_holder() {
    let _alone = alone();
    let (container, disk) = (start(""), Disk::with(Kind::Ext4));
    mount(&container, &disk, How::default()).unwrap();
    container.run(&["truncate", "-s", "1M", "/srv/data/deep/image"]);
    let image = format!("/proc/{}/root{PATH}/image", container.pid());
    let above = LoopDevice::over(Path::new(&image));
    assert_eq!(holders(&container, &disk), [format!("loop {}", above.name())]);
    above.detach();
    assert_eq!(holders(&container, &disk), Vec::<String>::new());
    let space = container.target.root().unwrap().existing(PATH).unwrap().unwrap();
    assert!(Space::of(&space).unwrap().bytes > 0);
    drop(space);
    assert_eq!(unmount(&container, &disk).unwrap().count, 1);
}
