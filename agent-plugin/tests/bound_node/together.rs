//! Nodes of one request, which are made and published together.

use std::thread;

use agent_plugin::{
    Error, Result,
    device_node::{Device, Draft, Node, private_nodes, publish_all, sweep},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
};

use super::{NODEV, OPTIONS, alone, found, kept, loop0, mounts_of, serial, soon};
use crate::container::{Fixture, start};

/// More than are published at once.
const MANY: usize = 20;

/// Makes a node at each path, as an attach does.
fn make(container: &Fixture, paths: &[String]) -> Vec<Node> {
    let serial = serial();
    let work = || {
        unshare(CloneFlags::CLONE_FS).expect("unshare");
        umask(Mode::empty());
        let device = Device { number: loop0(), options: OPTIONS, read_only: false, guarded: false };
        let locations: Vec<_> = paths.iter().map(|path| found(container, path)).collect();
        let draft = |location| Draft { location, target: &container.target, id: &serial, device };
        let drafts: Vec<_> = locations.iter().map(draft).collect();
        let private = private_nodes(&drafts, soon()).expect("private nodes");
        let made = locations.into_iter().zip(private).map(|(location, private)| {
            location.make_of(&container.target, &serial, device, private).expect("a node")
        });
        made.collect()
    };
    thread::scope(|scope| scope.spawn(work).join().expect("no panic"))
}

fn publish(nodes: &mut [Node]) -> Result<(), (usize, String)> {
    let mut nodes: Vec<_> = nodes.iter_mut().collect();
    publish_all(&mut nodes, soon()).map_err(|(index, error)| {
        assert!(matches!(*error, Error::PathTaken { .. }), "{error}");
        (index, error.to_string())
    })
}

#[test]
fn all_are_usable_and_each_is_removed_alone() {
    let _alone = alone();
    let container = start(NODEV);
    let before = mounts_of(&container);
    let paths: Vec<_> = (0..MANY).map(|index| format!("/dev/there/new/x{index}")).collect();
    let mut nodes = make(&container, &paths);
    assert!(container.list("/dev/there").is_empty(), "nothing appears before it is published");
    publish(&mut nodes).expect("published");
    assert_eq!(mounts_of(&container).len(), before.len() + MANY);
    for path in &paths {
        assert_eq!(container.stat("%F %u:%g %a", path), "block special file 1234:5678 640");
        container.run(&["dd", &format!("if={path}"), "of=/srv/out", "count=0"]);
    }
    assert_eq!(nodes[0].parents_made(), ["/dev/there/new"]);
    assert!(nodes[1..].iter().all(|node| node.parents_made().is_empty()));
    for node in nodes.iter().rev() {
        node.remove(soon()).expect("removed");
    }
    drop(nodes);
    sweep();
    assert_eq!((mounts_of(&container), kept()), (before, 0));
    assert!(container.list("/dev/there").is_empty());
}

#[test]
fn those_before_one_that_fails_are_published_and_no_others() {
    let _alone = alone();
    for taken in [1, MANY - 2] {
        let container = start(NODEV);
        let before = mounts_of(&container);
        let paths: Vec<_> = (0..MANY).map(|index| format!("/dev/there/x{index}")).collect();
        let mut nodes = make(&container, &paths);
        container.run(&["touch", &paths[taken]]);
        let (index, error) = publish(&mut nodes).unwrap_err();
        assert_eq!(index, taken);
        assert!(error.contains(&paths[taken]), "{error}");
        assert_eq!(container.list("/dev/there").len(), taken + 1);
        assert_eq!(mounts_of(&container).len(), before.len() + taken);
        nodes.iter().for_each(|node| node.remove(soon()).expect("removed"));
        assert_eq!(container.list("/dev/there"), [format!("x{taken}")]);
        drop(nodes);
        sweep();
        assert_eq!((mounts_of(&container), kept()), (before, 0));
    }
}
