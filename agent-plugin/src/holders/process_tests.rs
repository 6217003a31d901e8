use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, Command, Stdio},
    sync::{Barrier, mpsc},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use rstest::rstest;

use super::{
    super::{scan::Scan, task::processes},
    *,
};

#[rstest]
#[case("/pod/0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef")]
#[case("/a/cri-containerd-0123456789ab.scope", "0123456789ab")]
#[case("/kubepods-pod1.slice:cri-containerd:0123456789ab", "0123456789ab")]
#[case("/system.slice/cron.service", "")]
#[case("/pod", "")]
#[case("/0123456789abcdef/nested", "")]
#[case("/", "")]
fn only_an_id_is_taken_for_a_container(#[case] cgroup: &str, #[case] id: &str) {
    assert_eq!(id_of(Path::new(cgroup)), id);
}

#[test]
fn a_group_below_the_containers_belongs_to_the_container() {
    assert!(is_below(Path::new("/pod/c1/nested"), Path::new("/pod/c1")));
    assert!(!is_below(Path::new("/pod/c10"), Path::new("/pod/c1")));
    assert!(!is_below(Path::new("/pod/c1"), Path::new("/")));
}

fn disk(node: &str) -> Disk {
    let number = block_device(Path::new(node)).expect("these tests need root and the loop module");
    let name = node.trim_start_matches("/dev/").to_owned();
    Disk {
        serial: "s".into(),
        path: "/dev/xvda".into(),
        devices: vec![(name, number)],
        mounted: None,
    }
}

fn budget() -> Budget {
    Budget::until(Instant::now() + Duration::from_secs(60))
}

/// A process that has `node` open as its standard input.
fn holder(node: &str, arguments: &[&str]) -> Child {
    let open = File::open(node).unwrap();
    Command::new(arguments[0]).args(&arguments[1..]).stdin(open).spawn().unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_process_that_has_the_device_open_is_found_and_this_one_is_not() {
    let node = "/dev/loop0";
    let _open = File::open(node).unwrap();
    let child = holder(node, &["sleep", "60"]);
    let pid = child.id();
    let found = openers(&processes().unwrap(), &[disk(node)], &[], &mut budget());
    end(child);
    assert!(found.iter().all(|found| found.holder.pid != std::process::id()));
    let found: Vec<_> = found.into_iter().filter(|found| found.holder.pid == pid).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    let holder = &found[0].holder;
    assert_eq!((holder.command.as_str(), holder.detail.as_str()), ("sleep", node));
}

#[test]
fn a_thread_whose_process_does_not_have_the_device_open_is_found_once() {
    let node = "/dev/loop3";
    let disk = disk(node);
    let (sender, ready) = mpsc::channel();
    let done = Barrier::new(3);
    let find = || openers(&[std::process::id()], std::slice::from_ref(&disk), &[], &mut budget());
    assert!(find().is_empty());
    thread::scope(|scope| {
        for _ in 0..2 {
            let (sender, done) = (sender.clone(), &done);
            scope.spawn(move || {
                unshare(CloneFlags::CLONE_FILES).unwrap();
                let _open = File::open(node).unwrap();
                sender.send(()).unwrap();
                done.wait();
            });
        }
        assert_eq!(ready.iter().take(2).count(), 2);
        let found = find();
        done.wait();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].holder.detail, node);
    });
    assert!(find().is_empty());
}

#[test]
fn a_process_with_many_descriptors_waits_behind_the_others_and_is_looked_at_to_its_end() {
    let node = "/dev/loop4";
    let disk = disk(node);
    let few = holder(node, &["sleep", "60"]);
    // The shell duplicates the disk to its last descriptor.
    let script = "i=10; while [ $i -lt 900 ]; do eval \"exec $i</dev/null\"; i=$((i+1)); done; \
                  exec 901<&0 0</dev/null; echo ready; read line </dev/zero";
    let mut many = Command::new("bash")
        .args(["-c", script])
        .stdin(File::open(node).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(many.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pids = [many.id(), few.id()];
    let found = openers(&pids, &[disk], &[], &mut budget());
    end(few);
    end(many);
    let order: Vec<_> = found.iter().map(|found| found.holder.pid).collect();
    assert_eq!(order, [pids[1], pids[0]], "{found:?}");
}

#[test]
fn without_time_nothing_is_found_and_the_scan_is_not_complete() {
    let node = "/dev/loop5";
    let child = holder(node, &["sleep", "60"]);
    let mut over = Budget::until(Instant::now());
    let found = openers(&[child.id()], &[disk(node)], &[], &mut over);
    end(child);
    assert!(found.is_empty(), "{found:?}");
    assert!(matches!(over.end(found), Scan::Partial(..)));
}

#[test]
fn a_name_is_bytes() {
    let name = OsStr::from_bytes(b"\xff) S\n\x1b[2J");
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join(name);
    std::os::unix::fs::symlink("/bin/cat", &program).unwrap();
    let mut child = Command::new(&program);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Linux sets the name after it has let the parent of an exec continue.
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let command = command(child.id());
    end(child);
    assert_eq!(command, "\\xff) S\n\u{1b}[2J");
}

#[test]
fn other_files_are_no_block_devices() {
    assert_eq!(block_device(Path::new("/dev/null")), None);
    assert_eq!(block_device(Path::new("/proc/self/fd/999999")), None);
}
