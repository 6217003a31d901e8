//! Volumes that somebody on this host uses, in every way that an exclusive open sees and in those
//! that it does not: each is refused, with who it is, and nothing changes. What is fit is plugged.

mod common;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{Host, volume::Loop};
use host_trigger::{Error, source::Source};
use nix::sys::stat::{Mode, SFlag, major, mknod};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A child that has something open; it ends with its test.
struct Holder(Child);

impl Holder {
    fn of(stdin: impl Into<Stdio>) -> Self {
        Self(Command::new("sleep").arg("600").stdin(stdin).spawn().unwrap())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn name(device: &Path) -> &str {
    device.file_name().unwrap().to_str().unwrap()
}

/// It is refused for this reason, `who` is named, and nothing changes.
async fn assert_refused(host: &mut Host, volume: &Path, reason: &str, who: &str) {
    let before = host.snapshot().await;
    let ran = host.plug(volume, "/dev/xvda", &[]).await;
    ran.assert_fails(reason, 6);
    let message = ran.failure().error.message;
    assert!(message.contains(who), "{who:?} is not in {message:?}");
    assert_eq!(host.snapshot().await, before);
    assert!(host.guest.attached_paths().is_empty());
}

#[tokio::test]
async fn swap_is_refused() {
    struct Swap(PathBuf);
    impl Drop for Swap {
        fn drop(&mut self) {
            run("swapoff", &[text(&self.0)]);
        }
    }
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    run("mkswap", &[text(volume.path())]);
    run("swapon", &["--priority", "0", text(volume.path())]);
    let swap = Swap(volume.path().to_owned());
    assert_refused(&mut host, volume.path(), "source_held", "swap").await;
    drop(swap);
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_device_below_a_loop_device_is_refused() {
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    let above = Loop::over(volume.path());
    assert!(!volume.is_claimed(), "an exclusive open does not see it");
    let who = format!("loop device {}", name(above.path()));
    assert_refused(&mut host, volume.path(), "source_held", &who).await;
    above.detach();
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn an_image_below_a_loop_device_is_found_whatever_its_name_is_by_now() {
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    let directory = tempfile::tempdir_in(volume.image().parent().unwrap()).unwrap();
    let moved = directory.path().join("moved");
    fs::rename(volume.image(), &moved).unwrap();
    let who = format!("loop device {}", name(volume.path()));
    assert_refused(&mut host, &moved, "source_held", &who).await;
    fs::rename(&moved, volume.image()).unwrap();
}

#[tokio::test]
async fn a_mount_in_another_mount_namespace_is_named_with_its_process() {
    let mut host = Host::boot().await;
    let volume = Loop::of(16 * MIB);
    run("mkfs.ext4", &["-q", text(volume.path())]);
    let mount_point = tempfile::tempdir().unwrap();
    let script = "mount \"$1\" \"$2\" && echo mounted && exec sleep 600";
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh", text(volume.path()), text(mount_point.path())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = [0; 8];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut told).unwrap();
    let holder = Holder(child);
    let who = format!("mount namespace of process {}", holder.0.id());
    assert_refused(&mut host, volume.path(), "source_mounted", &who).await;
}

#[tokio::test]
async fn a_qemu_that_opened_the_device_by_its_path_is_named_though_it_claims_nothing() {
    let mut host = Host::boot().await;
    let mut other = Host::boot().await;
    let volume = Loop::of(MIB);
    for (read_only, node) in [(false, "a"), (true, "b")] {
        let add = json!({"driver": "host_device", "filename": volume.path(), "node-name": node, "read-only": read_only});
        other.by_hand("blockdev-add", add).await;
        assert!(!volume.is_claimed());
        let who = format!("process {} (qemu-system-x86, sandbox-s1)", other.qemu.id());
        assert_refused(&mut host, volume.path(), "source_held", &who).await;
        if read_only {
            let second = host.plug(volume.path(), "/dev/xvda", &["--read-only"]).await.report();
            assert!(second.volumes[0].read_only, "two readers are in nobody's way");
        }
        other.by_hand("blockdev-del", json!({"node-name": node})).await;
    }
}

#[tokio::test]
async fn a_process_that_has_the_device_open_for_a_look_is_in_nobodys_way() {
    let host = Host::boot().await;
    let volume = Loop::of(MIB);
    let _looks = Holder::of(OpenOptions::new().write(true).open(volume.path()).unwrap());
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_node_of_the_root_file_systems_device_is_refused_wherever_it_is() {
    let mut host = Host::boot().await;
    let root = fs::metadata("/").unwrap().dev();
    assert_ne!(major(root), 0, "this test needs a host whose root is on a device with a number");
    let directory = tempfile::tempdir().unwrap();
    let node = directory.path().join("innocent");
    mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR, root).unwrap();
    assert_refused(&mut host, &node, "source_is_root", "root file system").await;
}

#[tokio::test]
async fn partitions_are_plugged_and_in_the_way_of_their_disk() {
    let mut host = Host::boot().await;
    let disk = Loop::partitioned(4 * MIB);
    let part = |number: u32| PathBuf::from(format!("{}p{number}", disk.path().display()));
    assert!(fs::metadata(part(1)).unwrap().file_type().is_block_device());
    let report = host.plug(&part(1), "/dev/xvda", &[]).await.report();
    assert_eq!((report.volumes[0].size, &report.volumes[0].source_device), (MIB, &part(1)));
    host.plug(&part(2), "/dev/xvdb", &[]).await.report();
    let before = host.snapshot().await;
    let ran = host.plug(disk.path(), "/dev/xvdc", &[]).await;
    ran.assert_fails("source_held", 6);
    assert!(ran.stdout.contains(&format!("process {} (qemu-", host.qemu.id())), "{ran:?}");
    assert_eq!(host.snapshot().await, before);

    for path in ["/dev/xvda", "/dev/xvdb"] {
        host.verb("hot-unplug", &["--device-path", path]).await.report();
    }
    host.plug(disk.path(), "/dev/xvdc", &[]).await.report();
    let ran = host.plug(&part(1), "/dev/xvda", &[]).await;
    ran.assert_fails("source_held", 6);
    assert!(ran.stdout.contains(&format!("process {} (qemu-", host.qemu.id())), "{ran:?}");
}

#[tokio::test]
async fn a_link_is_followed_and_the_device_behind_it_reported() {
    let host = Host::boot().await;
    let volume = Loop::of(MIB);
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("scsi-0QEMU_disk");
    symlink(volume.path(), &link).unwrap();
    let report = host.plug(&link, "/dev/xvda", &[]).await.report();
    let plugged = &report.volumes[0];
    assert_eq!((&plugged.source, plugged.source_device.as_path()), (&link, volume.path()));
    // Both names are the same volume.
    let again = host.plug(volume.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(again.result, host_trigger::output::Outcome::Unchanged);
}

#[test]
fn a_device_that_changes_after_the_look_is_not_handed_on() {
    let volume = Loop::of(MIB);
    let source = Source::open(volume.path(), false).unwrap();
    source.claim().unwrap();
    volume.resize(2 * MIB);
    let error = source.claim().unwrap_err();
    assert!(matches!(error, Error::SourceChanged { .. }), "{error}");
}

#[cfg(feature = "fault")]
#[tokio::test]
async fn a_volume_that_changes_before_its_use_is_refused() {
    use nix::sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    };
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let image = common::volume::Image::of(MIB);
    let mut command = host.command(&[(image.path(), "/dev/xvda")], &[]);
    command.env("ECR_RUNTIME_FAULT", "after-probe=stop");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    // The agent in this process goes on meanwhile.
    let stopped = move || waitid(Id::Pid(pid), WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT);
    tokio::task::spawn_blocking(stopped).await.unwrap().unwrap();
    image.resize(2 * MIB);
    kill(pid, Signal::SIGCONT).unwrap();
    let output = child.wait_with_output().await.unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains(r#""reason":"source_changed""#), "{stdout}");
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(host.snapshot().await, before);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
}
