//! A QEMU that cannot open any more files: nothing is left of the attempt, and it works again when
//! there is room.

use std::{path::Path, process::Command};

use crate::common::{Host, volume::Image};

const MIB: u64 = 1 << 20;

/// Sets the soft limit of open files of a process.
fn limit(pid: u32, files: usize) {
    let set = Command::new("prlimit")
        .arg(format!("--pid={pid}"))
        .arg(format!("--nofile={files}:"))
        .status()
        .unwrap();
    assert!(set.success());
}

#[tokio::test]
async fn a_qemu_without_descriptors_refuses_and_has_nothing_left() {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let pid = host.qemu.id();
    let before = host.snapshot().await;
    let mut refused = 0;
    // Room for the connection, for that and the volume, and so on.
    for room in 1..=4 {
        // The limit is one of numbers, of which the lowest free one is given.
        let is_free = |number: &usize| !Path::new(&format!("/proc/{pid}/fd/{number}")).exists();
        limit(pid, (0..).filter(is_free).nth(room).unwrap());
        let ran = host.plug(image.path(), "/dev/xvda", &[]).await;
        limit(pid, 1024);
        match ran.exit_code {
            Some(0) => {
                drop(host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report())
            }
            Some(1) => refused += 1,
            _ => panic!("{ran:?}"),
        }
        assert_eq!(host.snapshot().await, before, "with room for {room}");
        assert!(host.agent.attached_paths().is_empty());
    }
    assert_ne!(refused, 0);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
}
