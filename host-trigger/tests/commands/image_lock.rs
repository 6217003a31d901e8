//! What keeps the host's own programs from an image that a sandbox has, and what does not: see
//! docs/limits.md.

use std::process::{Command, Output};

use crate::common::{Host, volume::Image};

const MIB: u64 = 1 << 20;

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).env("LC_ALL", "C").output().unwrap()
}

#[tokio::test]
async fn a_plugged_image_is_locked_against_another_qemu_and_not_against_a_loop_device() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    let path = image.path().to_str().unwrap();
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
    let write = ["resize", "-q", "-f", "raw", path, "2M"];
    let refused = run("qemu-img", &write);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("\"write\" lock"), "{message}");
    assert_eq!(image.size(), MIB);
    // Whoever only reads gets what is there at the moment.
    assert!(run("qemu-img", &["info", "-f", "raw", path]).status.success());
    // Locks are advisory, and the kernel's own users of a file do not ask for them.
    let device = run("losetup", &["--find", "--show", "--read-only", path]);
    assert!(device.status.success(), "{device:?}");
    let device = String::from_utf8(device.stdout).unwrap();
    assert!(run("losetup", &["--detach", device.trim_end()]).status.success());

    host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();
    assert!(run("qemu-img", &write).status.success());
}
