//! Sources that are in use on this host, whether an exclusive open detects the use or not: each is
//! refused, the error names the holder, and nothing changes. A source that is free is plugged.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::common::{Host, volume::Loop};
use host_trigger::{Deadline, Error, host::source::Source};
use nix::sys::stat::{Mode, SFlag, major, mknod};
use serde_json::json;

const MIB: u64 = 1 << 20;

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

/// A child process with an open descriptor. It ends with its test.
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

/// Asserts that `volume` is refused for `reason`, the error names `holder`, and nothing changes.
async fn assert_refused(host: &mut Host, volume: &Path, reason: &str, holder: &str) {
    let before = host.snapshot().await;
    let ran = host.plug(volume, "/dev/xvda", &[]).await;
    ran.assert_fails(reason, 6);
    let message = ran.failure().message;
    assert!(message.contains(holder), "{holder:?} is not in {message:?}");
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
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
async fn a_device_behind_a_loop_device_is_refused() {
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    let above = Loop::over(volume.path());
    assert!(!volume.is_claimed(), "an exclusive open does not detect it");
    let holder = format!("loop device {}", name(above.path()));
    assert_refused(&mut host, volume.path(), "source_held", &holder).await;
    above.detach();
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_renamed_image_behind_a_loop_device_is_refused() {
    let mut host = Host::boot().await;
    let volume = Loop::of(MIB);
    let directory = tempfile::tempdir_in(volume.image().parent().unwrap()).unwrap();
    let moved = directory.path().join("moved");
    fs::rename(volume.image(), &moved).unwrap();
    let holder = format!("loop device {}", name(volume.path()));
    assert_refused(&mut host, &moved, "source_held", &holder).await;
    fs::rename(&moved, volume.image()).unwrap();
}

#[tokio::test]
async fn a_mount_in_another_mount_namespace_is_reported_with_its_process() {
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
    let mut line = [0; 8];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    let process = Holder(child);
    // Programs that inspect new devices open them for a moment: they do not hold the device.
    let _inspector = Holder::of(fs::File::open(volume.path()).unwrap());
    let holder = format!("mount namespace of process {}", process.0.id());
    assert_refused(&mut host, volume.path(), "source_mounted", &holder).await;
}

#[tokio::test]
async fn a_qemu_that_opened_the_device_without_a_claim_is_reported() {
    let mut host = Host::boot().await;
    let mut other = Host::boot().await;
    let volume = Loop::of(MIB);
    for (read_only, node) in [(false, "a"), (true, "b")] {
        let add = json!({"driver": "host_device", "filename": volume.path(), "node-name": node, "read-only": read_only});
        other.execute("blockdev-add", add).await;
        assert!(!volume.is_claimed());
        let holder = format!("process {} (qemu-system-x86, sandbox-s1)", other.qemu.id());
        assert_refused(&mut host, volume.path(), "source_held", &holder).await;
        if read_only {
            let second = host.plug(volume.path(), "/dev/xvda", &["--read-only"]).await.report();
            assert!(second.body.volumes[0].read_only, "two readers do not conflict");
        }
        other.execute("blockdev-del", json!({"node-name": node})).await;
    }
}

#[tokio::test]
async fn a_process_that_only_opened_the_device_does_not_prevent_a_hot_plug() {
    let host = Host::boot().await;
    let volume = Loop::of(MIB);
    let _opener = Holder::of(OpenOptions::new().write(true).open(volume.path()).unwrap());
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_device_node_of_the_root_file_system_is_refused_in_any_directory() {
    let mut host = Host::boot().await;
    let root = fs::metadata("/").unwrap().dev();
    assert_ne!(major(root), 0, "this test needs a root file system on a block device");
    let directory = tempfile::tempdir().unwrap();
    let node = directory.path().join("another-name");
    mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR, root).unwrap();
    assert_refused(&mut host, &node, "source_is_root", "root file system").await;
}

#[tokio::test]
async fn a_plugged_partition_holds_its_disk_and_a_plugged_disk_its_partitions() {
    let mut host = Host::boot().await;
    let disk = Loop::partitioned(4 * MIB);
    let part = |number: u32| PathBuf::from(format!("{}p{number}", disk.path().display()));
    assert!(fs::metadata(part(1)).unwrap().file_type().is_block_device());
    let report = host.plug(&part(1), "/dev/xvda", &[]).await.report();
    assert_eq!(
        (report.body.volumes[0].size, &report.body.volumes[0].source_device),
        (MIB, &part(1))
    );
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
async fn a_symbolic_link_is_followed_and_its_device_reported() {
    let host = Host::boot().await;
    let volume = Loop::of(MIB);
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("scsi-0QEMU_disk");
    symlink(volume.path(), &link).unwrap();
    let report = host.plug(&link, "/dev/xvda", &[]).await.report();
    let plugged = &report.body.volumes[0];
    assert_eq!((&plugged.source, plugged.source_device.as_path()), (&link, volume.path()));
    // Both names denote the same volume.
    let again = host.plug(volume.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(again.result, host_trigger::output::envelope::Outcome::Unchanged);
}

#[tokio::test]
async fn a_device_that_changes_after_it_was_vetted_is_refused() {
    let volume = Loop::of(MIB);
    let source = Source::open(volume.path(), false, deadline()).await.unwrap();
    source.claim(deadline()).await.unwrap();
    volume.resize(2 * MIB);
    let error = source.claim(deadline()).await.unwrap_err();
    assert!(matches!(error, Error::SourceChanged { .. }), "{error}");
}

#[cfg(feature = "fault")]
#[tokio::test]
async fn a_source_that_changes_before_it_is_passed_on_is_refused() {
    use nix::sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    };
    let mut host = Host::boot().await;
    let before = host.snapshot().await;
    let image = crate::common::volume::Image::of(MIB);
    let mut command = host.command(&[(image.path(), "/dev/xvda")], &[]);
    command.env("ECR_RUNTIME_FAULT", "after-preflight=stop");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    // Do not block the agent, which runs in this process.
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
