//! Volumes whose file systems are mounted in the running container (`--mount-path`).

mod growth;
mod holders;
mod images;
mod lifecycle;
mod owners;
mod read_only;
mod refusals;
mod side_by_side;
mod user_namespace;
mod works;

use std::time::SystemTime;

use vm_harness::{Container, EcrRuntime, FileSystem, Plugged, Sandbox, Volume};

use super::hot_unplug::{unplug, verb};

/// The file that the host wrote, and what is in it.
pub(crate) const HELLO: (&str, &[u8]) = ("hello", b"from the host");

/// Returns a volume with an ext4 file system that has the file of the host.
pub(crate) fn ext4() -> Volume {
    FileSystem::Ext4.volume(&[HELLO])
}

/// Returns the arguments that select the volume that is mounted at this path of the container.
pub(crate) fn mounted<'a>(container: &'a Container, path: &'a str) -> [&'a str; 4] {
    ["--container", container.id(), "--mount-path", path]
}

/// Unplugs the volume that is mounted at this path of the container.
pub(crate) async fn unmount(sandbox: &Sandbox, container: &Container, path: &str) -> Plugged {
    unplug(sandbox, &mounted(container, path)).await
}

/// Returns the command that does so.
pub(crate) fn unmount_command(sandbox: &Sandbox, container: &Container, path: &str) -> EcrRuntime {
    verb(sandbox.ecr_runtime(), sandbox, "hot-unplug", &mounted(container, path))
}

/// Runs a script in the container, and returns what it printed.
pub(crate) async fn shell(container: &Container, script: &str) -> String {
    String::from_utf8(container.exec(&["sh", "-c", script]).await).unwrap()
}

/// Returns the options of what is mounted at `path`, as the container's mountinfo shows them: those
/// of the mount, and those of the file system.
pub(crate) async fn options(container: &Container, path: &str) -> (String, String) {
    let line = shell(container, &format!("grep ' {path} ' /proc/self/mountinfo")).await;
    assert_eq!(line.lines().count(), 1, "{path} is one mount: {line}");
    let words: Vec<&str> = line.split_whitespace().collect();
    (words[5].to_owned(), (*words.last().unwrap()).to_owned())
}

/// Checks that the container reads there what the host wrote.
pub(crate) async fn assert_hello(container: &Container, path: &str) {
    let read = container.exec(&["cat", &format!("{path}/{}", HELLO.0)]).await;
    assert_eq!(read, HELLO.1, "{path}");
}

/// Returns what the kernel knows of mounted file systems, of all namespaces.
pub(crate) async fn superblocks(sandbox: &Sandbox) -> String {
    // The others appear with the driver.
    let list = "ls -d /sys/fs/ext4/sd* /sys/fs/xfs/sd* /sys/fs/btrfs/*-* 2>/dev/null || true";
    sandbox.observer().shell(list).await
}

/// When the volume was written last. A checksum of the larger ones takes a debug build a minute.
pub(crate) fn written(volume: &Volume) -> SystemTime {
    std::fs::metadata(volume.image_path()).unwrap().modified().unwrap()
}
