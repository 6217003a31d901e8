//! Overlays: a root file system on one, whose directories' disks are the root's, and images on one,
//! which have two names with two inodes. Each is refused, and nothing changes.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{
    Host, RunOutput,
    volume::{Image, Loop},
};
use rstest::rstest;

const MIB: u64 = 1 << 20;

fn run(program: &str, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
}

/// The path of a partition of a disk.
fn part(disk: &Loop, number: u32) -> PathBuf {
    format!("{}p{number}", disk.path().display()).into()
}

/// Where the overlay of a test is: its path has a space and a byte that is not UTF-8.
fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix(OsStr::from_bytes(b"a b\xff")).tempdir().unwrap()
}

/// Mounts an overlay at `$1/root` in the mount namespace of this shell and runs the rest of the
/// arguments below it. `$2` is where temporary files are; `layers` mounts what the overlay is over
/// at `$1/lower`, `$1/upper`.
fn script(layers: &str, before: &str) -> String {
    format!(
        r#"set -e
        at=$1 temporary=$2; shift 2
        mkdir -p "$at/lower" "$at/upper" "$at/root" "$at/more"
        mount --bind / "$at/lower"
        {layers}
        mkdir -p "$at/upper/u" "$at/upper/w"
        mount -t overlay overlay "$at/root" \
            -o "lowerdir=$at/lower,upperdir=$at/upper/u,workdir=$at/upper/w"
        {before}
        for tree in /proc /sys /dev "$temporary"; do mount --rbind "$tree" "$at/root$tree"; done
        exec chroot "$at/root" "$@""#
    )
}

/// A program below a root on an overlay.
struct OverlayRoot {
    script: String,
    directory: tempfile::TempDir,
    program: tempfile::TempDir,
}

impl OverlayRoot {
    fn new(script: String) -> Self {
        Self { script, directory: directory(), program: crate::common::public_copy() }
    }

    /// Plugs `volume` below the root, as `host` does elsewhere.
    async fn plug(&self, host: &Host, volume: &Path, more: &[&str]) -> RunOutput {
        let plug = host.command(&[(volume, "/dev/xvda")], more);
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--mount", "sh", "-c", &self.script, "sh"]);
        command.arg(self.directory.path()).arg(std::env::temp_dir());
        command.arg(self.program.path().join("ecr-runtime")).args(plug.as_std().get_args());
        crate::common::run(&mut command).await
    }
}

/// The first partition of `$disk` has the upper directory.
fn on_partition(disk: &Loop) -> String {
    format!(r#"mount "{}" "$at/upper""#, part(disk, 1).display())
}

/// The upper directory is on a loop device over an image on that partition.
fn on_a_loop_device(disk: &Loop) -> String {
    format!(
        r#"mount "{}" "$at/more"
        truncate -s 768K "$at/more/image"
        mkfs.ext4 -q "$at/more/image"
        mount -o loop "$at/more/image" "$at/upper""#,
        part(disk, 1).display()
    )
}

/// The lower directory is another overlay, whose upper directory is on that partition.
fn on_another_overlay(disk: &Loop) -> String {
    format!(
        r#"mount "{}" "$at/more"
        mkdir -p "$at/more/u" "$at/more/w" "$at/base"
        mount --bind / "$at/base"
        mount -t tmpfs tmpfs "$at/upper"
        mount -t overlay overlay "$at/lower" \
            -o "lowerdir=$at/base,upperdir=$at/more/u,workdir=$at/more/w""#,
        part(disk, 1).display()
    )
}

#[rstest]
#[case::on_a_partition(on_partition)]
#[case::on_a_loop_device(on_a_loop_device)]
#[case::on_another_overlay(on_another_overlay)]
#[tokio::test]
async fn a_disk_of_a_root_on_an_overlay_is_refused(#[case] layers: fn(&Loop) -> String) {
    let mut host = Host::boot().await;
    let disk = Loop::partitioned(4 * MIB);
    run("mkfs.ext4", [OsStr::new("-q"), part(&disk, 1).as_os_str()]);
    host.plug(&part(&disk, 2), "/dev/xvda", &[]).await.report();
    host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();
    let before = host.snapshot().await;

    let root = OverlayRoot::new(script(&layers(&disk), ""));
    for more in [&["--dry-run"][..], &[]] {
        let ran = root.plug(&host, &part(&disk, 2), more).await;
        ran.assert_fails("source_is_root", 6);
    }
    assert_eq!(host.snapshot().await, before);
    // A disk without anything of the root is not affected.
    let other = Loop::of(MIB);
    root.plug(&host, other.path(), &[]).await.report();
}

#[tokio::test]
async fn no_device_is_accepted_while_the_disks_of_the_root_are_not_known() {
    let mut host = Host::boot().await;
    let disk = Loop::partitioned(4 * MIB);
    run("mkfs.ext4", [OsStr::new("-q"), part(&disk, 1).as_os_str()]);
    let hide = r#"umount --lazy "$at/upper""#;
    let root = OverlayRoot::new(script(&on_partition(&disk), hide));
    let before = host.snapshot().await;
    let other = Loop::of(MIB);
    for volume in [&part(&disk, 2), other.path()] {
        let ran = root.plug(&host, volume, &[]).await;
        ran.assert_fails("source_unchecked", 6);
        let message = ran.failure().message;
        assert!(message.contains("/: it is an overlay, and its directory /"), "{message}");
        assert!(message.ends_with("/upper/u cannot be found"), "{message}");
    }
    assert_eq!(host.snapshot().await, before);
    // An image is on no disk of its own.
    root.plug(&host, Image::of(MIB).path(), &[]).await.report();
}

/// An overlay with an image in its upper and in its lower directory. It is unmounted when it is
/// dropped.
struct Overlay {
    directory: tempfile::TempDir,
}

impl Overlay {
    fn mount() -> Self {
        let directory = directory();
        for name in ["lower", "upper", "work", "merged", "bound"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let overlay = Self { directory };
        for name in ["lower/old", "upper/new"] {
            fs::File::create(overlay.path(name)).unwrap().set_len(MIB).unwrap();
        }
        let options = ["lowerdir=", "/lower,upperdir=", "/upper,workdir=", "/work"];
        let options = options.map(|part| part.as_bytes().to_vec());
        let options = options.join(overlay.directory.path().as_os_str().as_bytes());
        let options = OsStr::from_bytes(&options);
        let merged = overlay.path("merged");
        run(
            "mount",
            [
                "-t".as_ref(),
                "overlay".as_ref(),
                "x".as_ref(),
                "-o".as_ref(),
                options,
                merged.as_os_str(),
            ],
        );
        run("mount", ["--bind".as_ref(), merged.as_os_str(), overlay.path("bound").as_os_str()]);
        overlay
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // After a failure QEMU still has a file there.
        for name in ["bound", "merged"] {
            let _ = Command::new("umount").arg("--lazy").arg(self.path(name)).status();
        }
    }
}

#[tokio::test]
async fn an_image_on_an_overlay_is_refused_and_the_one_below_it_plugged() {
    let mut host = Host::boot().await;
    let overlay = Overlay::mount();
    let before = host.snapshot().await;
    for name in ["merged/new", "merged/old", "bound/new"] {
        for more in [&["--read-only"][..], &["--dry-run"], &[]] {
            let ran = host.plug(&overlay.path(name), "/dev/xvda", more).await;
            ran.assert_fails("source_stacked", 6);
        }
    }
    assert_eq!(host.snapshot().await, before);
    assert!(!overlay.path("upper/old").exists(), "the refusal copied it");
    host.plug(&overlay.path("upper/new"), "/dev/xvda", &[]).await.report();
    // A lease on the file of the overlay does not detect it.
    let before = host.snapshot().await;
    let ran = host.plug(&overlay.path("merged/new"), "/dev/xvdb", &[]).await;
    ran.assert_fails("source_stacked", 6);
    assert_eq!(host.snapshot().await, before);
}

#[tokio::test]
async fn a_loop_device_over_an_image_on_an_overlay_is_refused() {
    let mut host = Host::boot().await;
    let overlay = Overlay::mount();
    let image = overlay.path("merged/new");
    let volume = Loop::over(&image);
    let before = host.snapshot().await;
    let ran = host.plug(volume.path(), "/dev/xvda", &[]).await;
    ran.assert_fails("source_stacked", 6);
    let over = format!("{:?} is over {}, which is on an overlay", volume.path(), image.display());
    let message = ran.failure().message;
    assert!(message.starts_with(&over), "{message}");
    // The path says nothing any more.
    fs::remove_file(&image).unwrap();
    host.plug(volume.path(), "/dev/xvda", &[]).await.assert_fails("source_stacked", 6);
    assert_eq!(host.snapshot().await, before);
    volume.detach();
}
