//! Bind nodes: device nodes that are mounted into a container because the container could not open
//! a mknod node or others could see it. Needs root, util-linux and the loop driver.

#[path = "../container/mod.rs"]
mod container;
mod together;

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use agent_plugin::{
    Error, Result, Unsupported,
    block::DeviceNumber,
    device_node::{
        Device, Existing, Location, Node, NodeKind, NodeOptions, NodePath, Removal, Removed, sweep,
    },
    mount::Mounts,
};
use container::{Fixture, start, start_with_user_namespace};
use nix::{
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
};
use rstest::rstest;

const OPTIONS: NodeOptions = NodeOptions { uid: 1234, gid: 5678, mode: 0o640 };

/// File systems on which the plugin must not make a mknod node, each at `/dev/there`.
const NODEV: &str = "mkdir $root/dev/there; mount -t tmpfs -o nodev t $root/dev/there";
// Its image is on none of the container's own mounts: where they are detached in one piece, they
// would keep each other alive for ever.
const FOREIGN: &str = "mkdir $root/dev/there; image=$(mktemp)
    truncate -s 8M $image; mkfs.ext4 -q -F $image; mount -o loop,nosuid $image $root/dev/there
    rm $image; rmdir $root/dev/there/lost+found";
const OVERLAY: &str = "mkdir $root/dev/there $root/dev/over; mount -t tmpfs t $root/dev/over
    mkdir $root/dev/over/lower $root/dev/over/upper $root/dev/over/work
    mount -t overlay -o lowerdir=$root/dev/over/lower,upperdir=$root/dev/over/upper,workdir=$root/dev/over/work o $root/dev/there";

fn loop0() -> DeviceNumber {
    let text = fs::read_to_string("/sys/class/block/loop0/dev").expect("the loop driver");
    text.trim().parse().expect("a device number")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// One for each test: copies of a node are looked for in all namespaces, those of other tests, too.
fn serial() -> String {
    let mut hasher = DefaultHasher::new();
    (std::process::id(), thread::current().id()).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn found(container: &Fixture, path: &str) -> Location {
    let path = NodePath::new(path).expect("a valid path");
    let find = move |root: &_, mounts: &_| Location::find(root, &path, mounts);
    let visit = Mounts::visit(&container.target, find).expect("a thread");
    visit.finish(soon()).expect("the parent exists")
}

fn make(container: &Fixture, path: &str) -> Result<Node> {
    make_for(container, path, OPTIONS, false)
}

fn make_for(
    container: &Fixture,
    path: &str,
    options: NodeOptions,
    read_only: bool,
) -> Result<Node> {
    let (place, serial) = (found(container, path), serial());
    let work = || {
        unshare(CloneFlags::CLONE_FS).expect("unshare");
        umask(Mode::empty());
        let device = Device { number: loop0(), options, read_only, guarded: false };
        place.make(&container.target, &serial, device, soon())
    };
    thread::scope(|scope| scope.spawn(work).join().expect("no panic"))
}

/// As a detach does: the node is found anew.
fn remove(container: &Fixture, path: &str) -> Removed {
    let place = found(container, path);
    let path = NodePath::new(path).unwrap();
    let removal = Removal::new(&serial(), "c1", &path, Some(loop0()), false);
    removal.from(&container.target, Some(&place), soon())
}

/// The tests look at the descriptors of their process, which is the same for all where they are
/// threads (`cargo test`): one at a time, and each after the plugin has closed what it kept for the
/// one before. The kernel frees a container's namespace, with the node in it, some time after its
/// last process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    sweep_all();
    alone
}

/// Sweeps until no number is kept.
fn sweep_all() {
    let deadline = soon();
    while kept() > 0 {
        assert!(Instant::now() < deadline, "the namespace is gone and the number is still kept");
        sweep();
        thread::yield_now();
    }
}

/// How many descriptors of the disk this process has.
fn kept() -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|link| link == Path::new("/dev/loop0"))
        })
        .count()
}

/// The lines of a process's mountinfo, without the IDs that differ each time.
fn mounts(path: &str) -> Vec<String> {
    let text = fs::read_to_string(path).expect("/proc");
    text.lines().map(|line| line.split(' ').skip(2).collect::<Vec<_>>().join(" ")).collect()
}

fn mounts_of(container: &Fixture) -> Vec<String> {
    mounts(&format!("/proc/{}/mountinfo", container.pid()))
}

#[rstest]
#[case::nodev(NODEV)]
#[case::a_disk(FOREIGN)]
#[case::overlay(OVERLAY)]
fn a_node_is_mounted_where_mknod_cannot_be_used(#[case] extra: &str) {
    let _alone = alone();
    let container = start(extra);
    let of_container = format!("/proc/{}/mountinfo", container.pid());
    let before = (mounts("/proc/self/mountinfo"), mounts(&of_container));
    let mut node = make(&container, "/dev/there/x").expect("a node");
    assert_eq!(node.kind(), NodeKind::Bind);
    assert!(node.verify_open().expect("the loop device opens"));
    assert!(container.list("/dev/there").is_empty(), "no name appears before the node is usable");
    node.publish(soon()).expect("published");
    assert_eq!(
        container.stat("%F %u:%g %a %t:%T", "/dev/there/x"),
        "block special file 1234:5678 640 7:0"
    );
    container.run(&["dd", "if=/dev/there/x", "of=/srv/out", "count=0"]);
    container.run(&["chmod", "600", "/dev/there/x"]);
    let place = found(&container, "/dev/there/x");
    assert!(
        matches!(place.existing().unwrap(), Some(Existing::Block(number, _)) if number == loop0())
    );
    assert_eq!(mounts("/proc/self/mountinfo"), before.0, "nothing is mounted in our own namespace");
    assert_eq!(mounts(&of_container).len(), before.1.len() + 1);
    drop(node);
    let removed = remove(&container, "/dev/there/x");
    assert_eq!(removed.options, Some(NodeOptions { mode: 0o600, ..OPTIONS }));
    assert_eq!((removed.left, kept()), (Vec::new(), 0), "nothing refers to it");
    assert!(container.list("/dev/there").is_empty());
    assert_eq!(mounts(&of_container), before.1);
    assert!(remove(&container, "/dev/there/x").options.is_none());
}

#[test]
fn a_container_with_a_user_namespace_gets_a_node_owned_by_its_root() {
    let _alone = alone();
    let container = start_with_user_namespace("");
    let root = NodeOptions { uid: 100_000, gid: 100_000, mode: 0o660 };
    let mut node = make_for(&container, "/dev/new/x", root, false).expect("a node");
    assert_eq!(node.kind(), NodeKind::Bind);
    node.publish(soon()).expect("published");
    assert_eq!(container.stat("%F %u:%g %a", "/dev/new/x"), "block special file 0:0 660");
    assert_eq!(container.stat("%F %u:%g %a", "/dev/new"), "directory 0:0 755");
    container.run(&["dd", "if=/dev/new/x", "of=/srv/out", "count=0"]);
    node.remove(soon()).expect("removed");
    assert_eq!(container.list("/dev"), ["sub"]);
}

#[test]
fn a_read_only_node_is_on_a_read_only_mount() {
    let _alone = alone();
    let container = start(NODEV);
    let mut node = make_for(&container, "/dev/there/x", OPTIONS, true).expect("a node");
    node.publish(soon()).expect("published");
    assert!(container.fails(&["chmod", "666", "/dev/there/x"]).contains("Read-only file system"));
    node.remove(soon()).expect("removed");
}

#[test]
fn a_file_system_that_is_mounted_elsewhere_gets_no_mknod_node() {
    let _alone = alone();
    // Our own /dev: whatever the container has there is visible to us.
    let container = start("mkdir $root/dev/there; mount --bind /dev $root/dev/there");
    let mut node = make(&container, "/dev/there/ecr-test-x").expect("a node");
    assert_eq!(node.kind(), NodeKind::Bind);
    node.publish(soon()).expect("published");
    container.run(&["test", "-b", "/dev/there/ecr-test-x"]);
    let seen = fs::symlink_metadata("/dev/ecr-test-x").expect("the empty file under the node");
    assert!(seen.is_file() && seen.len() == 0);
    node.remove(soon()).expect("removed");
    assert!(!fs::exists("/dev/ecr-test-x").unwrap());
}

#[rstest]
#[case("touch $root/dev/there/x", "file")]
#[case("mkdir $root/dev/there/x", "directory")]
#[case("ln -s /nowhere $root/dev/there/x", "symbolic link")]
fn an_existing_file_at_the_path_is_named_and_kept(#[case] extra: &str, #[case] expected: &str) {
    let _alone = alone();
    let container = start(&format!("{NODEV}; {extra}"));
    let before = container.stat("%i", "/dev/there/x");
    let error = make(&container, "/dev/there/x")
        .expect("a node, not published yet")
        .publish(soon())
        .unwrap_err();
    assert!(matches!(&*error, Error::PathTaken { by, .. } if by == expected), "{error}");
    assert_eq!(container.stat("%i", "/dev/there/x"), before);
}

#[test]
fn a_full_file_system_leaves_nothing() {
    let _alone = alone();
    let container =
        start("mkdir $root/dev/there; mount -t tmpfs -o nodev,nr_inodes=1 t $root/dev/there");
    for path in ["/dev/there/x", "/dev/there/new/x"] {
        let error = make(&container, path).expect("a node").publish(soon()).unwrap_err();
        assert!(matches!(*error, Error::NoSpace { .. }), "{error}");
        assert!(container.list("/dev/there").is_empty());
    }
}

#[test]
fn a_file_system_of_the_kernel_is_named() {
    let _alone = alone();
    let container = start("");
    let error = found(&container, "/proc/x").check(&container.target, false).unwrap_err();
    assert!(error.to_string().contains("is on proc, which takes no file"), "{error}");
}

#[test]
fn shared_propagation_is_refused_by_the_check_and_later_by_the_kernel() {
    let _alone = alone();
    let container = start(&format!("{NODEV}; mount --make-shared $root/dev/there"));
    let error = found(&container, "/dev/there/x").check(&container.target, false).unwrap_err();
    assert!(matches!(*error, Error::Unsupported(Unsupported::Shared { .. })), "{error}");
    let container = start(NODEV);
    let mut node = make(&container, "/dev/there/x").expect("a node");
    container.run(&["mount", "--make-shared", "/dev/there"]);
    let error = node.publish(soon()).unwrap_err();
    assert!(matches!(*error, Error::Unsupported(Unsupported::Shared { .. })), "{error}");
    assert!(container.list("/dev/there").is_empty());
}

#[test]
fn a_directory_that_is_replaced_by_a_link_after_the_lookup_is_not_followed() {
    let _alone = alone();
    let container = start(&format!("{NODEV}; mkdir $root/dev/there/sub"));
    let mut node = make(&container, "/dev/there/sub/x").expect("a node");
    container.run(&["sh", "-c", "mv /dev/there/sub /dev/there/old; ln -s /srv /dev/there/sub"]);
    node.publish(soon()).expect("where the directory is now");
    assert_eq!(container.list("/srv"), ["inside"]);
    assert_eq!(container.list("/dev/there/old"), ["x"]);
    node.remove(soon()).expect("removed");
    assert!(container.list("/dev/there/old").is_empty());
}

#[test]
fn data_that_the_container_wrote_to_the_file_under_the_node_is_kept() {
    let _alone = alone();
    // perl reads its program from /dev/null.
    let container = start(&format!("{NODEV}; mknod $root/dev/null c 1 3"));
    let mut node = make(&container, "/dev/there/x").expect("a node");
    node.publish(soon()).expect("published");
    // The container writes to the file through another name of its directory.
    container.run(&[
        "sh",
        "-ec",
        "mkdir /dev/again; mount --bind /dev/there /dev/again; echo theirs > /dev/again/x",
    ]);
    let removed = remove(&container, "/dev/there/x");
    assert!(removed.options.is_some() && removed.left.is_empty(), "{removed:?}");
    assert_eq!(container.stat("%F %s", "/dev/there/x"), "regular file 7");
}

#[test]
fn the_file_under_a_node_that_the_container_unmounted_is_removed_if_it_is_known() {
    let _alone = alone();
    let container = start(NODEV);
    make(&container, "/dev/there/x").expect("a node").publish(soon()).expect("published");
    // umount(8) would take the device for the thing to unmount.
    let umount2 = "$path = \"/dev/there/x\"; exit(syscall(166, $path, 2) != 0)";
    container.run(&["mknod", "/dev/null", "c", "1", "3"]);
    container.run(&["perl", "-e", umount2]);
    assert!(remove(&container, "/dev/there/x").options.is_none());
    assert_eq!(container.list("/dev/there"), ["x"], "it may be the container's own");
    let path = NodePath::new("/dev/there/x").unwrap();
    let removal = Removal::new(&serial(), "c1", &path, Some(loop0()), false);
    let place = found(&container, "/dev/there/x");
    let removed = removal.of_bind_node(true).from(&container.target, Some(&place), soon());
    assert!(removed.options.is_none() && removed.left.is_empty(), "{removed:?}");
    assert!(container.list("/dev/there").is_empty());
}

#[test]
fn mounts_over_the_node_go_with_it() {
    let _alone = alone();
    let container = start(NODEV);
    let before = mounts_of(&container);
    make(&container, "/dev/there/x").expect("a node").publish(soon()).expect("published");
    for file in ["/etc/passwd", "/etc/group"] {
        container.run(&["mount", "--bind", file, "/dev/there/x"]);
    }
    let removed = remove(&container, "/dev/there/x");
    assert_eq!((removed.options, removed.left), (Some(OPTIONS), Vec::new()));
    assert_eq!(mounts_of(&container), before);
    assert!(container.list("/dev/there").is_empty());
}

#[test]
fn a_node_is_removed_wherever_the_container_moved_it() {
    let _alone = alone();
    let container = start(&format!("{NODEV}; mkdir $root/dev/there/sub; touch $root/srv/x"));
    let before = mounts_of(&container);
    make(&container, "/dev/there/sub/x").expect("a node").publish(soon()).expect("published");
    container.run(&[
        "sh",
        "-ec",
        "mount --move /dev/there/sub/x /srv/x; mount --bind /srv/x /srv/inside
         mv /dev/there/sub /dev/there/old; ln -s /srv /dev/there/sub",
    ]);
    let removed = remove(&container, "/dev/there/sub/x");
    assert_eq!((removed.options, removed.left, kept()), (Some(OPTIONS), Vec::new(), 0));
    assert_eq!(mounts_of(&container), before);
    // Its own file there has the name of ours.
    assert_eq!(container.list("/srv"), ["inside"]);
}

#[test]
fn a_node_that_cannot_be_reached_is_reported_and_its_number_is_kept() {
    let _alone = alone();
    let container = start(NODEV);
    make(&container, "/dev/there/x").expect("a node").publish(soon()).expect("published");
    container.run(&["mount", "-t", "tmpfs", "cover", "/dev/there"]);
    let removed = remove(&container, "/dev/there/x");
    assert!(removed.options.is_none());
    let left: Vec<_> = removed.left.iter().map(|left| left.path.as_str()).collect();
    assert_eq!(left.len(), 1, "{removed:?}");
    assert_eq!(left[0], "/dev/there/x", "as the container sees it");
    assert_eq!(kept(), 1);
    container.run(&["umount", "/dev/there"]);
    let removed = remove(&container, "/dev/there/x");
    assert_eq!((removed.options, removed.left, kept()), (Some(OPTIONS), Vec::new(), 0));
}

/// Starts a process in the container's namespace (outside of its chroot, in which no user namespace
/// can be made), and waits until it says "here".
fn keeper(container: &Fixture, arguments: &[&str]) -> std::process::Child {
    let pid = container.pid().to_string();
    let mut child = std::process::Command::new("nsenter")
        .args(["--target", &pid, "--mount"])
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("nsenter of util-linux");
    let mut line = String::new();
    let stdout = child.stdout.as_mut().expect("piped");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
    assert_eq!(line, "here\n");
    child
}

fn end(mut keeper: std::process::Child) {
    drop(keeper.stdin.take());
    keeper.wait().expect("its end");
}

const HERE: &str = "echo here; cat";

/// A process in namespaces of its own (an option of `unshare`) has a copy of the node, which goes
/// with the node.
fn assert_copy_goes_with_the_node(namespaces: &str) {
    let _alone = alone();
    let container = start(NODEV);
    make(&container, "/dev/there/x").expect("a node").publish(soon()).expect("published");
    let keeper = keeper(&container, &["unshare", namespaces, "sh", "-c", HERE]);
    let removed = remove(&container, "/dev/there/x");
    assert_eq!((removed.options, removed.left, kept()), (Some(OPTIONS), Vec::new(), 0));
    let of_keeper = fs::read_to_string(format!("/proc/{}/mountinfo", keeper.id())).unwrap();
    assert!(!of_keeper.contains("ecrblk-"), "{of_keeper}");
    end(keeper);
}

#[test]
fn a_copy_in_a_private_namespace_is_unmounted() {
    assert_copy_goes_with_the_node("--mount");
}

/// The removal of the file under the node ends all mounts over it, also those that the kernel has
/// locked together because the namespace belongs to another user namespace.
#[test]
fn a_copy_in_a_user_namespace_goes_with_the_file_under_it() {
    assert_copy_goes_with_the_node("-Urm");
}

#[test]
fn a_locked_copy_over_a_file_that_stays_is_nodev_and_keeps_the_number_until_it_ends() {
    let _alone = alone();
    let container = start(&format!(
        "{NODEV}; mkdir $root/dev/again; mount --bind $root/dev/there $root/dev/again"
    ));
    make(&container, "/dev/there/x").expect("a node").publish(soon()).expect("published");
    container.run(&["sh", "-c", "echo theirs >/dev/again/x"]);
    let keeper = keeper(&container, &["unshare", "-Urm", "sh", "-c", HERE]);
    let removed = remove(&container, "/dev/there/x");
    assert_eq!((removed.options, removed.left, kept()), (Some(OPTIONS), Vec::new(), 1));
    let of_keeper = fs::read_to_string(format!("/proc/{}/mountinfo", keeper.id())).unwrap();
    let copy = of_keeper.lines().find(|line| line.contains("ecrblk-")).expect("it is locked");
    assert!(copy.contains("nodev"), "{copy}");
    sweep();
    assert_eq!(kept(), 1);
    end(keeper);
    // The kernel frees a namespace after its last process.
    sweep_all();
}

#[test]
fn a_descriptor_of_the_node_keeps_the_number_until_it_is_closed() {
    let _alone = alone();
    let container = start(NODEV);
    make(&container, "/dev/there/x").expect("a node").publish(soon()).expect("published");
    let path = format!("/proc/{}/root/dev/there/x", container.pid());
    let held = nix::fcntl::open(path.as_str(), nix::fcntl::OFlag::O_PATH, Mode::empty()).unwrap();
    let removed = remove(&container, "/dev/there/x");
    assert_eq!((removed.options, removed.left, kept()), (Some(OPTIONS), Vec::new(), 1));
    drop(held);
    sweep();
    assert_eq!(kept(), 0);
}

#[test]
fn a_container_that_keeps_too_many_references_gets_no_further_node() {
    let _alone = alone();
    let container = start(NODEV);
    let path = format!("/proc/{}/root/dev/there/x", container.pid());
    let mut held = Vec::new();
    for _ in 0..64 {
        make(&container, "/dev/there/x").expect("a node").publish(soon()).expect("published");
        let node = nix::fcntl::open(path.as_str(), nix::fcntl::OFlag::O_PATH, Mode::empty());
        held.push(node.unwrap());
        let removed = remove(&container, "/dev/there/x");
        assert_eq!((removed.options, removed.left), (Some(OPTIONS), Vec::new()));
    }
    let place = found(&container, "/dev/there/x");
    let error = place.check(&container.target, false).unwrap_err();
    assert!(matches!(*error, Error::Unsupported(Unsupported::Referenced { .. })), "{error}");
    assert_eq!(place.check(&container.target, true).expect("a filter"), NodeKind::Bind);
    held.pop();
    sweep();
    assert_eq!(kept(), 63);
    place.check(&container.target, false).expect("one fewer");
    drop(held);
    sweep();
    assert_eq!(kept(), 0);
}

#[test]
fn the_disk_of_an_ended_container_is_released() {
    let _alone = alone();
    let container = start(FOREIGN);
    let device = container.run(&["findmnt", "--noheadings", "--output", "SOURCE", "/dev/there"]);
    let device = String::from_utf8(device.stdout).unwrap().trim().replace("/dev/", "/sys/block/");
    // The next user of the loop device changes its sequence number.
    let disk = || {
        (
            fs::exists(format!("{device}/loop")).unwrap(),
            fs::read_to_string(format!("{device}/diskseq")),
        )
    };
    let before = disk();
    assert!(before.0, "{device} is a loop device");
    drop(container);
    // A process that another test has just forked may hold the namespace until it has called
    // execve(2).
    let is_free = || {
        let after = disk();
        !after.0 || after.1.unwrap() != before.1.as_deref().unwrap()
    };
    let deadline = soon();
    while !is_free() {
        assert!(Instant::now() < deadline, "{device} is still in use");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_ended_container_leaves_no_file_on_a_file_system_that_outlives_it() {
    let _alone = alone();
    let outside = tempfile::tempdir().unwrap();
    let bind =
        format!("mkdir $root/dev/there; mount --bind {} $root/dev/there", outside.path().display());
    let mut container = start(&bind);
    let mut node = make(&container, "/dev/there/new/x").expect("a node");
    node.publish(soon()).expect("published");
    assert!(outside.path().join("new/x").is_file());
    container.kill();
    node.remove(soon()).expect("removed");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}
