//! Sources that consist of something that is in use on this host: the same bytes have another name,
//! and an exclusive open of the source does not detect their use. Each is refused, the error names
//! the way from the source to what is in use, and nothing changes.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::common::{
    Host,
    volume::{Image, Loop},
};
use host_trigger::{Deadline, Error, host::source::Source};
use nix::sys::stat::{Mode, SFlag, mknod};
use serde_json::json;

const MIB: u64 = 1 << 20;

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A mounted ext4. It is unmounted when it is dropped.
struct Mount(tempfile::TempDir);

impl Mount {
    /// Makes a file system on `device` and mounts it.
    fn of(device: &Path) -> Self {
        run("mkfs.ext4", &["-q", text(device)]);
        let directory = tempfile::tempdir().unwrap();
        run("mount", &[text(device), text(directory.path())]);
        Self(directory)
    }

    fn point(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[text(self.point())]);
    }
}

/// Asserts that `volume` is refused for `reason` with the message `expected` after its name, and
/// that nothing changes. A dry run says the same.
async fn assert_refused(
    host: &mut Host,
    volume: &Path,
    options: &[&str],
    reason: &str,
    expected: &str,
) {
    let before = host.snapshot().await;
    for dry_run in [&["--dry-run"][..], &[]] {
        let ran = host.plug(volume, "/dev/xvda", &[options, dry_run].concat()).await;
        ran.assert_fails(reason, 6);
        let message = ran.failure().message;
        assert_eq!(message, format!("{volume:?} {expected}"), "{dry_run:?}");
    }
    assert_eq!(host.snapshot().await, before);
    assert!(host.agent.attached_paths().is_empty());
}

#[tokio::test]
async fn a_loop_device_over_a_mounted_device_is_refused() {
    let mut host = Host::boot().await;
    let lower = Loop::of(16 * MIB);
    let (volume, mount) = (Loop::over(lower.path()), Mount::of(lower.path()));
    let over = format!("is over {}, which is mounted on ", lower.path().display());
    let expected = format!("{over}{}", mount.point().display());
    assert_refused(&mut host, volume.path(), &[], "source_mounted", &expected).await;
    // Through all levels.
    let upper = Loop::over(volume.path());
    let over = format!(
        "is over {}, over {}, which is mounted on {}",
        volume.path().display(),
        lower.path().display(),
        mount.point().display()
    );
    assert_refused(&mut host, upper.path(), &[], "source_mounted", &over).await;
    assert_refused(&mut host, upper.path(), &["--read-only"], "source_mounted", &over).await;
    drop(mount);
    host.plug(upper.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_second_loop_device_over_the_image_of_a_mounted_one_is_refused() {
    let mut host = Host::boot().await;
    let mounted = Loop::of(16 * MIB);
    let (volume, _mount) = (Loop::over(mounted.image()), Mount::of(mounted.path()));
    let name = mounted.path().file_name().unwrap().to_str().unwrap();
    let expected =
        format!("is over {}, which is held by the loop device {name}", mounted.image().display());
    assert_refused(&mut host, volume.path(), &[], "source_held", &expected).await;
}

#[tokio::test]
async fn names_that_are_not_utf8_hide_nothing() {
    let mut host = Host::boot().await;
    let directory =
        tempfile::Builder::new().prefix(OsStr::from_bytes(b"a b\xff")).tempdir().unwrap();
    let image = directory.path().join(OsStr::from_bytes(b"image\xfe"));
    fs::File::create(&image).unwrap().set_len(16 * MIB).unwrap();
    // A loop device over the image is mounted, on a path with such a byte.
    let mounted = Loop::over(&image);
    let point = directory.path().join(OsStr::from_bytes(b"\xfd"));
    fs::create_dir(&point).unwrap();
    run("mkfs.ext4", &["-q", text(mounted.path())]);
    let mount = Command::new("mount").arg(mounted.path()).arg(&point).status().unwrap();
    assert!(mount.success());
    let volume = Loop::over(&image);
    let name = mounted.path().file_name().unwrap().to_str().unwrap();
    let held = format!("is over {}, which is held by the loop device {name}", image.display());
    assert_refused(&mut host, volume.path(), &[], "source_held", &held).await;
    volume.detach();
    let mounted_on = format!("is mounted on {}", point.display());
    assert_refused(&mut host, mounted.path(), &[], "source_mounted", &mounted_on).await;
    // What it is over is found in the mount tables, too.
    let upper = Loop::over(mounted.path());
    let over = format!("is over {}, which {mounted_on}", mounted.path().display());
    assert_refused(&mut host, upper.path(), &[], "source_mounted", &over).await;
    upper.detach();
    let unmounted = Command::new("umount").arg(&point).status().unwrap();
    assert!(unmounted.success());
    host.plug(mounted.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn loop_devices_over_other_bytes_of_one_image_are_plugged() {
    let mut host = Host::boot().await;
    let image = Image::of(32 * MIB);
    let part = |offset: &str, size: &str| {
        Loop::over_with(image.path(), &["--offset", offset, "--sizelimit", size])
    };
    let first = part("0", "16777216");
    let _mount = Mount::of(first.path());
    let second = part("16777216", "1048576");
    host.plug(second.path(), "/dev/xvda", &[]).await.report();
    host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();
    let overlapping = part("16776704", "1048576");
    second.detach();
    let name = first.path().file_name().unwrap().to_str().unwrap();
    let expected =
        format!("is over {}, which is held by the loop device {name}", image.path().display());
    assert_refused(&mut host, overlapping.path(), &[], "source_held", &expected).await;
}

#[tokio::test]
async fn a_loop_device_over_a_plugged_device_is_refused() {
    let mut host = Host::boot().await;
    let other = Host::boot().await;
    let lower = Loop::of(MIB);
    other.plug(lower.path(), "/dev/xvda", &[]).await.report();
    let volume = Loop::over(lower.path());
    let expected = format!(
        "is over {}, which is held by process {} (qemu-system-x86, sandbox-s1)",
        lower.path().display(),
        other.qemu.id()
    );
    assert_refused(&mut host, volume.path(), &[], "source_held", &expected).await;
    other.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
    // Again: it is attached, and not in use by others.
    let again = host.plug(volume.path(), "/dev/xvda", &[]).await.report();
    assert_eq!(again.result, host_trigger::output::envelope::Outcome::Unchanged);
    host.verb("resize", &["--device-path", "/dev/xvda"]).await.report();
}

#[tokio::test]
async fn a_loop_device_over_an_image_of_a_vm_is_refused() {
    let mut host = Host::boot().await;
    let mut other = Host::boot().await;
    let volume = Loop::of(MIB);
    let add = json!({"driver": "file", "filename": volume.image(), "node-name": "a"});
    other.execute("blockdev-add", add).await;
    let expected = format!(
        "is over {}, which is held by process {} (qemu-system-x86, sandbox-s1)",
        volume.image().display(),
        other.qemu.id()
    );
    assert_refused(&mut host, volume.path(), &[], "source_held", &expected).await;
    other.execute("blockdev-del", json!({"node-name": "a"})).await;
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

/// A swap file. It is removed from use when it is dropped.
struct SwapFile(PathBuf);

impl SwapFile {
    fn on(image: &Path) -> Self {
        fs::write(image, vec![0; 1 << 20]).unwrap();
        run("chmod", &["600", text(image)]);
        run("mkswap", &[text(image)]);
        let swapon = Command::new("swapon").args(["--priority", "0"]).arg(image).output().unwrap();
        assert!(
            swapon.status.success(),
            "set TMPDIR to a directory on ext4 or xfs, which take swap files: {swapon:?}"
        );
        Self(image.to_owned())
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        run("swapoff", &[text(&self.0)]);
    }
}

#[tokio::test]
async fn a_loop_device_over_a_swap_file_is_refused() {
    let mut host = Host::boot().await;
    let directory = tempfile::Builder::new().prefix("a space ").tempdir().unwrap();
    let image = directory.path().join("swap file");
    let swap = SwapFile::on(&image);
    let volume = Loop::over(&image);
    let expected = format!("is over {}, which is held by the kernel's swap", image.display());
    assert_refused(&mut host, volume.path(), &[], "source_held", &expected).await;
    drop(swap);
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_loop_device_over_a_swap_device_is_refused() {
    let mut host = Host::boot().await;
    let lower = Loop::of(MIB);
    run("mkswap", &[text(lower.path())]);
    run("swapon", &["--priority", "0", text(lower.path())]);
    let swap = SwapFile(lower.path().to_owned());
    let volume = Loop::over(lower.path());
    let expected =
        format!("is over {}, which is held by the kernel's swap", lower.path().display());
    assert_refused(&mut host, volume.path(), &[], "source_held", &expected).await;
    drop(swap);
}

#[tokio::test]
async fn a_loop_device_over_a_disk_with_a_mounted_partition_is_refused() {
    let mut host = Host::boot().await;
    let disk = Loop::partitioned(32 * MIB);
    let part = |number: u32| PathBuf::from(format!("{}p{number}", disk.path().display()));
    let twin = Loop::over(disk.image());
    let whole = Loop::over(disk.path());
    let second = Loop::over(&part(2));
    let mount = Mount::of(&part(1));
    let name = disk.path().file_name().unwrap().to_str().unwrap();
    let expected =
        format!("is over {}, which is held by the loop device {name}", disk.image().display());
    assert_refused(&mut host, twin.path(), &[], "source_held", &expected).await;
    let expected = format!(
        "is over {}, which is mounted on {}",
        disk.path().display(),
        mount.point().display()
    );
    assert_refused(&mut host, whole.path(), &[], "source_mounted", &expected).await;
    // The other partition has other bytes; but the twin and the whole have them.
    twin.detach();
    whole.detach();
    host.plug(second.path(), "/dev/xvda", &[]).await.report();
}

/// A directory below kubelet's, which is made if this host has none.
struct Kubelet(PathBuf);

impl Kubelet {
    fn new() -> Self {
        let directory = PathBuf::from(format!("/var/lib/kubelet/plugins/{}", std::process::id()));
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&directory).unwrap();
        Self(directory)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
        // Only if nothing else is there.
        for parent in self.0.ancestors().skip(1).take(2) {
            let _ = fs::remove_dir(parent);
        }
    }
}

#[tokio::test]
async fn a_loop_device_of_kubelet_is_no_obstacle_until_it_is_used() {
    let mut host = Host::boot().await;
    let kubelet = Kubelet::new();
    let volume = Loop::of(16 * MIB);
    let published = kubelet.0.join("5c3f8f5a-pod");
    mknod(
        &published,
        SFlag::S_IFBLK,
        Mode::S_IRUSR | Mode::S_IWUSR,
        fs::metadata(volume.path()).unwrap().rdev(),
    )
    .unwrap();
    let kubelets = Loop::over(&published);
    host.plug(volume.path(), "/dev/xvda", &[]).await.report();
    host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();

    let source = Source::open(volume.path(), false, deadline()).await.unwrap();
    source.claim(deadline()).await.unwrap();
    let mount = Mount::of(kubelets.path());
    let error = source.claim(deadline()).await.unwrap_err();
    assert!(matches!(error, Error::SourceMounted { .. }), "it is checked again: {error}");
    drop(source);
    let expected = format!(
        "is below {}, which is mounted on {}",
        kubelets.path().display(),
        mount.point().display()
    );
    assert_refused(&mut host, volume.path(), &[], "source_mounted", &expected).await;
    drop(mount);

    let upper = Loop::over(kubelets.path());
    let name = upper.path().file_name().unwrap().to_str().unwrap();
    let expected =
        format!("is below {}, which is held by the loop device {name}", kubelets.path().display());
    assert_refused(&mut host, volume.path(), &[], "source_held", &expected).await;
    upper.detach();

    // Another one beside it is an obstacle.
    let other = Loop::over(volume.path());
    let name = other.path().file_name().unwrap().to_str().unwrap();
    let expected = format!("is held by the loop device {name}");
    assert_refused(&mut host, volume.path(), &[], "source_held", &expected).await;
    other.detach();

    // The loop device itself is a source like any other.
    host.plug(volume.path(), "/dev/xvdb", &[]).await.report();
    let before = host.snapshot().await;
    let ran = host.plug(kubelets.path(), "/dev/xvda", &[]).await;
    ran.assert_fails("source_held", 6);
    assert_eq!(host.snapshot().await, before);
    host.verb("hot-unplug", &["--device-path", "/dev/xvdb"]).await.report();
    host.plug(kubelets.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_device_below_that_is_mounted_after_the_check_is_noticed_by_the_claim() {
    let lower = Loop::of(16 * MIB);
    let volume = Loop::over(lower.path());
    let source = Source::open(volume.path(), false, deadline()).await.unwrap();
    source.claim(deadline()).await.unwrap();
    let mount = Mount::of(lower.path());
    let error = source.claim(deadline()).await.unwrap_err();
    assert!(matches!(error, Error::SourceMounted { .. }), "{error}");
    drop(mount);
    source.claim(deadline()).await.unwrap();
}
