//! Real device nodes in a container's `/dev`. Needs root, util-linux and the loop driver.

mod container;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use agent_plugin::{
    Error, Result, Unsupported,
    block::DeviceNumber,
    device_node::{
        Device, Existing, Location, Node, NodeKind, NodeOptions, NodePath, Removal, Removed,
        remove_parents,
    },
    mount::Mounts,
};
use container::{Fixture, start};
use nix::{
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
};
use rstest::rstest;

const OPTIONS: NodeOptions = NodeOptions { uid: 1234, gid: 5678, mode: 0o666 };

fn loop0() -> DeviceNumber {
    let text = fs::read_to_string("/sys/class/block/loop0/dev").expect("the loop driver");
    text.trim().parse().expect("a device number")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn find(container: &Fixture, path: &str) -> Result<Location> {
    let path = NodePath::new(path).expect("a valid path");
    let find = move |root: &_, mounts: &_| Location::find(root, &path, mounts);
    Mounts::visit(&container.target, find)?.finish(soon())
}

/// Makes a node on a separate thread, as the plugin does: otherwise the umask is shared by the
/// whole process.
fn make(container: &Fixture, place: Location) -> Result<Node> {
    let work = || {
        unshare(CloneFlags::CLONE_FS).expect("unshare");
        umask(Mode::empty());
        let device = Device { number: loop0(), options: OPTIONS, read_only: false, guarded: true };
        place.make(&container.target, "0123456789abcdef", device, soon())
    };
    thread::scope(|scope| scope.spawn(work).join().expect("no panic"))
}

/// As a detach does: the node is found anew.
fn remove(container: &Fixture, path: &str) -> Removed {
    let node_path = NodePath::new(path).unwrap();
    let removal = Removal::new("0123456789abcdef", "c1", &node_path, Some(loop0()), true);
    removal.from(&container.target, Some(&found(container, path)), soon())
}

fn found(container: &Fixture, path: &str) -> Location {
    find(container, path).expect("the parent exists")
}

#[test]
fn a_published_node_has_its_owner_and_mode_and_can_be_opened() {
    let container = start("");
    let place = found(&container, "/dev/sub/xvda");
    assert_eq!(place.check(&container.target, true).expect("tmpfs"), NodeKind::Mknod);
    let mut node = make(&container, place).expect("a node");
    assert_eq!(container.list("/dev/sub"), [".ecrblk-0123456789abcdef"]);
    assert!(node.verify_open().expect("the loop device opens"));
    node.publish(soon()).expect("published");
    assert_eq!(container.list("/dev/sub"), ["xvda"]);
    assert_eq!(
        container.stat("%F %u:%g %a %t:%T", "/dev/sub/xvda"),
        "block special file 1234:5678 666 7:0"
    );
    container.run(&["dd", "if=/dev/sub/xvda", "of=/srv/out", "count=0"]);
    assert!(!fs::exists("/dev/sub").unwrap(), "the node must not be in our own namespace");
    node.remove(soon()).expect("removed");
    assert!(container.list("/dev/sub").is_empty());
}

#[test]
fn without_a_device_filter_no_node_is_made_in_the_containers_file_system() {
    let container = start("");
    let place = found(&container, "/dev/x");
    assert_eq!(place.check(&container.target, true).unwrap(), NodeKind::Mknod);
    assert_eq!(place.check(&container.target, false).unwrap(), NodeKind::Bind);
}

#[rstest]
#[case("touch $root/dev/x", Existing::Other("file"))]
#[case("mkdir $root/dev/x", Existing::Other("directory"))]
#[case("ln -s /nowhere $root/dev/x", Existing::Other("symbolic link"))]
#[case("mknod $root/dev/x c 1 3", Existing::Other("character device"))]
#[case("mkfifo $root/dev/x", Existing::Other("named pipe"))]
fn an_existing_file_at_the_path_is_named_and_kept(#[case] extra: &str, #[case] expected: Existing) {
    let container = start(extra);
    let before = container.stat("%i", "/dev/x");
    let place = found(&container, "/dev/x");
    assert_eq!(place.existing().unwrap(), Some(expected));
    // Also if it appears after that check.
    let mut node = make(&container, place).expect("a temporary node");
    let error = node.publish(soon()).unwrap_err();
    assert!(
        matches!(&*error, Error::PathTaken { by, .. } if *by == expected.to_string()),
        "{error}"
    );
    node.remove(soon()).expect("removed");
    assert_eq!(container.list("/dev"), ["sub", "x"]);
    assert_eq!(container.stat("%i", "/dev/x"), before);
}

#[test]
fn another_block_device_is_named_with_its_number() {
    let container = start("mknod -m 600 $root/dev/x b 8 16");
    let occupant = found(&container, "/dev/x").existing().unwrap().unwrap();
    assert_eq!(occupant.to_string(), "block device 8:16");
    assert!(remove(&container, "/dev/x").options.is_none(), "it is not ours");
    assert_eq!(container.list("/dev"), ["sub", "x"]);
}

#[test]
fn links_stay_inside_the_root() {
    let container =
        start("ln -s /srv $root/dev/absolute; ln -s ../../../../../srv $root/dev/upwards");
    for link in ["absolute", "upwards"] {
        let mut node =
            make(&container, found(&container, &format!("/dev/{link}/x"))).expect("a node");
        node.publish(soon()).expect("published");
        assert_eq!(
            container.list("/srv"),
            ["inside", "x"],
            "the container has its own tmpfs at /srv"
        );
        node.remove(soon()).expect("removed");
    }
    assert!(!fs::exists("/srv/x").unwrap());
}

#[rstest]
#[case::to_the_agent("ln -s /proc/$PPID/root/dev $root/dev/evil")]
#[case("ln -s /proc/self/root $root/dev/evil")]
#[case("ln -s /proc/self/cwd $root/dev/evil")]
#[case("ln -s evil $root/dev/evil")]
fn links_of_proc_are_not_followed(#[case] extra: &str) {
    let container = start(extra);
    let error = find(&container, "/dev/evil/x").unwrap_err();
    assert!(matches!(*error, Error::Unsupported(Unsupported::MagicLink { .. })), "{error}");
}

#[test]
fn too_many_missing_directories_are_refused() {
    let container = start("");
    assert_eq!(found(&container, &format!("/dev{}/x", "/a".repeat(16))).missing().len(), 16);
    let error = find(&container, &format!("/dev{}/x", "/a".repeat(17))).unwrap_err();
    assert!(matches!(*error, Error::ParentMissing { .. }), "{error}");
}

#[test]
fn a_dangling_link_as_parent_is_named_and_not_followed() {
    let container = start("ln -s /dev/nowhere $root/dev/link");
    let error = make(&container, found(&container, "/dev/link/x")).unwrap_err();
    assert!(matches!(&*error, Error::ParentMissing { path } if path == "/dev/link"), "{error}");
    assert_eq!(container.list("/dev"), ["link", "sub"]);
}

#[test]
fn a_file_as_parent_is_named() {
    let container = start("touch $root/dev/file");
    let error = find(&container, "/dev/file/x").unwrap_err();
    assert!(matches!(&*error, Error::ParentMissing { path } if path == "/dev/file"), "{error}");
}

#[test]
fn a_read_only_or_full_file_system_is_refused_and_not_changed() {
    let container = start(
        "mkdir $root/dev/full $root/dev/ro; mount -t tmpfs -o nr_inodes=1 t $root/dev/full
         mount -t tmpfs -o ro t $root/dev/ro",
    );
    for path in ["/dev/full/x", "/dev/full/new/x"] {
        let error = make(&container, found(&container, path)).unwrap_err();
        assert!(matches!(*error, Error::NoSpace { .. }), "{error}");
        assert!(container.list("/dev/full").is_empty());
    }
    let error = found(&container, "/dev/ro/x").check(&container.target, true).unwrap_err();
    assert!(matches!(*error, Error::ReadOnlyFileSystem { .. }), "{error}");
}

#[test]
fn missing_directories_are_made_and_removed_with_the_node() {
    let container = start("ln -s /srv $root/dev/link");
    for (path, parents, top) in [
        ("/dev/a/b/x", vec!["/dev/a", "/dev/a/b"], "/dev"),
        ("/dev/link/c/x", vec!["/dev/link/c"], "/srv"),
    ] {
        let before = container.list(top);
        let mut node = make(&container, found(&container, path)).expect("a node");
        node.publish(soon()).expect("published");
        assert_eq!(node.parents_made(), parents);
        container.run(&["test", "-b", path]);
        assert_eq!(container.stat("%F %a %u", parents[0]), "directory 755 0");
        node.remove(soon()).expect("removed");
        assert_eq!(container.list(top), before, "{path}");
    }
    assert!(!fs::exists("/srv/c").unwrap());
}

#[test]
fn a_directory_that_the_container_made_after_the_lookup_is_kept() {
    let container = start("");
    let place = found(&container, "/dev/a/b/c/x");
    container.run(&["mkdir", "-p", "/dev/a/b"]);
    let mut node = make(&container, place).expect("a node");
    node.publish(soon()).expect("published");
    assert_eq!(node.parents_made(), ["/dev/a/b/c"]);
    node.remove(soon()).expect("removed");
    assert!(container.list("/dev/a/b").is_empty());
}

#[test]
fn directories_that_the_container_uses_are_kept() {
    let container = start("");
    let mut node = make(&container, found(&container, "/dev/a/b/x")).expect("a node");
    node.publish(soon()).expect("published");
    container.run(&["touch", "/dev/a/theirs"]);
    let parents: Vec<_> =
        node.parents_made().iter().map(|path| NodePath::new(path).unwrap()).collect();
    assert_eq!(remove(&container, "/dev/a/b/x").options, Some(OPTIONS));
    remove_parents(&container.target, &parents, soon()).expect("removed");
    assert_eq!(container.list("/dev/a"), ["theirs"]);
    container.run(&["rm", "/dev/a/theirs"]);
    remove_parents(&container.target, &parents, soon()).expect("removed");
    assert_eq!(container.list("/dev"), ["sub"]);
}

#[test]
fn a_leftover_of_ours_is_replaced_and_a_foreign_file_is_not() {
    let container = start(
        "mknod $root/dev/.ecrblk-0123456789abcdef b 7 1; mkdir $root/srv/.ecrblk-0123456789abcdef",
    );
    let place = found(&container, "/dev/x");
    assert_eq!(
        place.leftover("0123456789abcdef").unwrap().as_deref(),
        Some("/dev/.ecrblk-0123456789abcdef")
    );
    make(&container, place).expect("a node").publish(soon()).expect("published");
    assert_eq!(container.list("/dev"), ["sub", "x"]);
    let error = make(&container, found(&container, "/srv/x")).unwrap_err();
    assert!(matches!(&*error, Error::PathTaken { by, .. } if by == "directory"), "{error}");
    assert_eq!(container.list("/srv"), [".ecrblk-0123456789abcdef", "inside"]);
}

#[test]
fn a_node_that_the_container_moved_is_detected() {
    let container = start("");
    let mut node = make(&container, found(&container, "/dev/x")).expect("a node");
    container.run(&["mv", "/dev/.ecrblk-0123456789abcdef", "/dev/stolen"]);
    assert!(matches!(*node.publish(soon()).unwrap_err(), Error::NodeMoved { .. }));
    assert!(
        matches!(*node.remove(soon()).unwrap_err(), Error::NodeMoved { .. }),
        "the error reports that a node remains"
    );
    assert_eq!(container.list("/dev"), ["stolen", "sub"]);
}

#[test]
fn a_node_that_the_container_put_in_place_of_ours_is_recognized() {
    let container = start("");
    let mut node = make(&container, found(&container, "/dev/x")).expect("a node");
    container.run(&["rm", "/dev/.ecrblk-0123456789abcdef"]);
    container.run(&["mknod", "/dev/.ecrblk-0123456789abcdef", "b", "7", "0"]);
    assert!(matches!(*node.publish(soon()).unwrap_err(), Error::NodeMoved { .. }));
    node.remove(soon()).expect("ours is gone");
    assert_eq!(container.list("/dev"), ["sub", "x"], "the container's own node is kept");
}

#[test]
fn a_container_that_has_ended_is_not_entered() {
    let mut container = start("");
    container.target.check_alive().expect("alive");
    container.target.root().expect("a root");
    container.kill();
    assert!(matches!(*container.target.check_alive().unwrap_err(), Error::ContainerEnded { .. }));
    assert!(matches!(*container.target.root().unwrap_err(), Error::ContainerEnded { .. }));
    assert!(matches!(*find(&container, "/dev/x").unwrap_err(), Error::ContainerEnded { .. }));
}

#[test]
fn a_file_system_that_never_answers_causes_only_a_time_out() {
    let mut container = start(
        "mkdir $root/dev/hang; exec 5<>/dev/fuse
         mount -i -t fuse -o fd=5,rootmode=40000,user_id=0,group_id=0 hang $root/dev/hang",
    );
    let path = NodePath::new("/dev/hang/deeper/x").unwrap();
    let find = move |root: &_| Location::find(root, &path, &Mounts::default());
    let visit = container.target.enter(find).expect("a thread");
    let error = visit.finish(Instant::now() + Duration::from_millis(300)).unwrap_err();
    assert_eq!(error.to_string(), "timed out waiting for a file system of container c1");
    found(&container, "/dev/sub/x");
    // The thread continues when the file system's owner ends.
    let stuck = || {
        let names =
            container::threads().into_iter().map(|thread| fs::read_to_string(thread.join("comm")));
        names.flatten().filter(|name| name.trim() == "block-volume-ns").count()
    };
    container.kill();
    let deadline = soon();
    while stuck() > 0 && container::thread_namespaces().len() > 1 {
        assert!(Instant::now() < deadline, "the thread still runs");
        thread::yield_now();
    }
}

#[test]
fn a_file_system_of_another_type_is_accessed_only_during_the_path_lookup() {
    let outside = tempfile::tempdir().unwrap();
    let container = start(&format!(
        "mkdir $root/dev/bind; mount --bind {} $root/dev/bind",
        outside.path().display()
    ));
    let (before, there) = (found(&container, "/dev/bind/x"), outside.path().join("x"));
    assert_eq!(
        before.check(&container.target, true).unwrap(),
        NodeKind::Bind,
        "the temporary directory must not be on a tmpfs"
    );
    fs::write(&there, "").unwrap();
    fs::write(outside.path().join(".ecrblk-0123456789abcdef"), "").unwrap();
    // It may be a file system that the container provides and that never answers: at this point
    // nothing would end the wait.
    assert_eq!(before.existing().unwrap(), None);
    assert_eq!(before.leftover("0123456789abcdef").unwrap(), None);
    assert!(!before.remove_leftover("0123456789abcdef").unwrap());
    let removed = remove(&container, "/dev/bind/x");
    assert!(removed.options.is_none() && removed.left.is_empty(), "{removed:?}");
    assert_eq!(found(&container, "/dev/bind/x").existing().unwrap(), Some(Existing::Other("file")));
    assert!(fs::exists(there).unwrap());
}
