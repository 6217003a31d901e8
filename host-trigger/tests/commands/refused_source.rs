//! Sources that the kernel does not open: the error names the cause, and a remedy that helps.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{
    Host, RunOutput,
    volume::{Image, Loop},
};
use nix::sys::stat::{Mode, SFlag, mknod};
use rstest::rstest;

const MIB: u64 = 1 << 20;

fn succeeds(program: &str, arguments: &[&str]) {
    let ran = Command::new(program).args(arguments).output().unwrap();
    assert!(ran.status.success(), "{program} {arguments:?}: {ran:?}");
}

/// An attribute of a file. It is removed when it is dropped.
struct Attribute<'a>(&'a str, &'a Path);

impl<'a> Attribute<'a> {
    fn set(letter: &'a str, path: &'a Path) -> Self {
        succeeds("chattr", &[&format!("+{letter}"), path.to_str().unwrap()]);
        Self(letter, path)
    }
}

impl Drop for Attribute<'_> {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg(format!("-{}", self.0)).arg(self.1).status();
    }
}

/// A tmpfs. It is unmounted when it is dropped.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", options, "tmpfs", directory.path().to_str().unwrap()];
        succeeds("mount", &mount);
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[track_caller]
fn assert_cause(ran: &RunOutput, (reason, status): (&str, u8), cause: &str, remedy: &str) {
    ran.assert_fails(reason, status);
    let error = ran.failure();
    assert!(error.message.contains(cause), "{error:?}");
    assert!(error.remedy.as_ref().unwrap().contains(remedy), "{error:?}");
}

#[rstest]
#[case("i", "immutable (`chattr +i`)")]
#[case("a", "append-only (`chattr +a`)")]
#[tokio::test]
async fn an_attribute_of_the_file_is_named(#[case] letter: &str, #[case] cause: &str) {
    let mut host = Host::boot().await;
    let image = Image::of(MIB);
    let before = host.snapshot().await;
    let attribute = Attribute::set(letter, image.path());
    for more in [&[][..], &["--dry-run"]] {
        let ran = host.plug(image.path(), "/dev/xvda", more).await;
        assert_cause(&ran, ("source_read_only", 6), cause, &format!("chattr -{letter}"));
    }
    assert_eq!((host.snapshot().await, host.changes().len()), (before, 0));
    host.plug(image.path(), "/dev/xvda", &["--read-only"]).await.report();
    host.verb("hot-unplug", &["--device-path", "/dev/xvda"]).await.report();
    drop(attribute);
    host.plug(image.path(), "/dev/xvda", &[]).await.report();
}

#[tokio::test]
async fn a_file_system_that_is_mounted_read_only_is_named() {
    let host = Host::boot().await;
    let tmpfs = Tmpfs::mount("size=4m");
    let image = tmpfs.path("image");
    fs::File::create(&image).unwrap().set_len(MIB).unwrap();
    succeeds("mount", &["-o", "remount,ro", tmpfs.0.path().to_str().unwrap()]);
    let ran = host.plug(&image, "/dev/xvda", &[]).await;
    assert_cause(&ran, ("source_read_only", 6), "mounted read-only", "--read-only");
    host.plug(&image, "/dev/xvda", &["--read-only"]).await.report();
}

#[tokio::test]
async fn a_device_node_on_a_nodev_file_system_is_named() {
    use std::os::unix::fs::MetadataExt;
    let host = Host::boot().await;
    let tmpfs = Tmpfs::mount("size=4m,nodev");
    let device = Loop::of(MIB);
    let number = fs::metadata(device.path()).unwrap().rdev();
    let node = tmpfs.path("node");
    mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number).unwrap();
    for more in [&[][..], &["--read-only"]] {
        let ran = host.plug(&node, "/dev/xvda", more).await;
        assert_cause(&ran, ("denied", 11), "mounted nodev", "its node in /dev");
    }
}

#[tokio::test]
async fn a_root_without_its_capabilities_is_told_so() {
    let host = Host::boot().await;
    let image = Image::of(MIB);
    std::os::unix::fs::chown(image.path(), Some(65534), None).unwrap();
    let command = host.command(&[(image.path(), "/dev/xvda")], &[]);
    let command = command.as_std();
    let without = "-dac_override,-dac_read_search";
    let mut weak = tokio::process::Command::new("setpriv");
    weak.arg(format!("--inh-caps={without}")).arg(format!("--bounding-set={without}"));
    weak.arg(command.get_program()).args(command.get_args());
    let ran = crate::common::run(&mut weak).await;
    assert_cause(&ran, ("denied", 11), "not the capabilities of root", "as root");
}
