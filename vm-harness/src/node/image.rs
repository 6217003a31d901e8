//! What a node boots from: the disk with Debian (`node_image` of `ci/debian.sh`), one with the
//! programs of this build, one with Kata's release, the kernel, and an initramfs that mounts the
//! first.
//!
//! No disk is ever written: QEMU keeps what the node writes apart. File systems are made without a
//! mount, by [`mke2fs -d`](https://man7.org/linux/man-pages/man8/mke2fs.8.html).

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use image_builder::{cpio::Archive, kernel::Kernel, module::Modules};
use tempfile::TempDir;

use super::Node;
use crate::{Accelerator, Environment, Error};

/// The labels of the disks beside the first, and where they are mounted.
pub(super) const PROGRAMS: (&str, &str) = ("programs", "/opt/vm-harness");
pub(super) const KATA: (&str, &str) = ("kata", "/opt/kata");
/// The file with the variables of the suite, on the disk with the programs.
const ENVIRONMENT: &str = "environment";
/// The variable that names the scenarios that run.
pub(super) const SCENARIOS: &str = "VM_HARNESS_SCENARIOS";
/// The package, on the same disk.
pub(super) const PACKAGE: &str = "ecr-runtime.deb";
/// What is needed to mount the first disk; ext4 asks for a checksum by a name of its own.
const MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];
const MIB: u64 = 1 << 20;

/// The files of one node. What was made for it is removed when the value is dropped.
#[derive(Debug)]
pub(super) struct NodeImage {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    /// In the order of their devices: `/dev/vda` has Debian.
    pub(super) disks: Vec<PathBuf>,
    _directory: TempDir,
}

impl NodeImage {
    pub(super) fn make(
        node: &Node,
        environment: &Environment,
        accelerator: Accelerator,
    ) -> Result<Self, Error> {
        let root = fetched(environment.cache.join("node/root.ext4"))?;
        let unpacked = fetched(environment.cache.join("kernels/node"))?;
        let made = tempfile::Builder::new().prefix("node-").tempdir_in(&environment.target);
        let directory = made.map_err(Error::file("make a directory in", &environment.target))?;
        let path = |name: &str| directory.path().join(name);

        let failed = |error| Error::Image(Box::new(error));
        let found = Kernel::find(&unpacked).map_err(failed)?;
        let (kernel, initramfs) = (path("vmlinux"), path("initramfs.cpio"));
        write(&kernel, found.vmlinux().map_err(failed)?)?;
        write(&initramfs, initramfs_of(&found)?)?;

        let programs = path("programs");
        stage(node, environment, accelerator, &programs)?;
        let mut disks = vec![root, path("programs.ext4")];
        make_disk(PROGRAMS.0, &programs, &disks[1])?;
        if let Some(release) = &node.kata {
            disks.push(path("kata.ext4"));
            make_disk(KATA.0, &kata_directory(release)?, &disks[2])?;
        }
        Ok(Self { kernel, initramfs, disks, _directory: directory })
    }
}

/// The directory `opt/kata` of a release, as its archive has it.
fn kata_directory(release: &Path) -> Result<PathBuf, Error> {
    let directory = release.join("opt/kata");
    if directory.is_dir() {
        return Ok(directory);
    }
    Err(Error::Missing {
        what: directory.display().to_string(),
        remedy: "name the directory into which the archive of Kata's release was unpacked",
    })
}

fn fetched(path: PathBuf) -> Result<PathBuf, Error> {
    if path.exists() {
        return Ok(path);
    }
    Err(Error::Missing { what: path.display().to_string(), remedy: "run ci/node" })
}

fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<(), Error> {
    fs::write(path, contents).map_err(Error::file("write", path))
}

/// An initramfs that loads the modules for the first disk, and starts what is on it.
fn initramfs_of(kernel: &Kernel) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::Image(Box::new(error));
    let mut archive = Archive::default();
    let busybox = Path::new("/bin/busybox");
    archive.file("bin/busybox", 0o755, fs::read(busybox).map_err(Error::file("read", busybox))?);
    archive.character_device("dev/console", 0o600, 5, 1);
    let mut script = String::from("#!/bin/busybox sh\nset -e\nbusybox=/bin/busybox\n");
    for (kind, mount_point) in [("devtmpfs", "dev"), ("proc", "proc"), ("sysfs", "sys")] {
        archive.directory(mount_point, 0o755);
        let _ = writeln!(script, "$busybox mount -t {kind} {kind} /{mount_point}");
    }
    if let Some(directory) = &kernel.modules {
        let modules = Modules::of(&kernel.release, directory).map_err(failed)?;
        let wanted: Vec<_> = MODULES.into_iter().filter(|name| modules.has(name)).collect();
        for module in modules.in_load_order(&wanted).map_err(failed)? {
            let file = format!("modules/{}.ko", module.name);
            let _ = writeln!(script, "$busybox insmod /{file}");
            archive.file(&file, 0o644, module.contents);
        }
    }
    archive.directory("root", 0o755);
    script.push_str("$busybox mount -t ext4 /dev/vda /root\n");
    script.push_str("$busybox umount /proc /sys\n");
    script.push_str("$busybox mount --move /dev /root/dev\n");
    script.push_str("exec $busybox switch_root /root /sbin/init\n");
    archive.file("init", 0o755, script);
    archive.to_bytes().map_err(failed)
}

/// Puts the contents of the disk with the programs into `directory`: as Cargo's target directory,
/// so that the harness in the node finds what it needs.
fn stage(
    node: &Node,
    environment: &Environment,
    accelerator: Accelerator,
    directory: &Path,
) -> Result<(), Error> {
    for name in ["release", "images/default", "cache"] {
        let made = directory.join(name);
        fs::create_dir_all(&made).map_err(Error::file("make", made))?;
    }
    let image = environment.image("default")?;
    let mut copies = vec![
        (environment.vm_harness()?, "release/vm-harness".to_owned()),
        (node.package.clone(), PACKAGE.to_owned()),
    ];
    for name in ["vmlinux", "initramfs.cpio", "image.json"] {
        copies.push((image.join(name), format!("images/default/{name}")));
    }
    for (from, to) in copies {
        fs::copy(&from, directory.join(to)).map_err(Error::file("copy", from))?;
    }
    // What the package installs.
    for name in ["ecr-runtime", "ecr-qemu"] {
        let link = directory.join("release").join(name);
        symlink(format!("/usr/bin/{name}"), &link).map_err(Error::file("make", &link))?;
    }
    let mut variables = format!("VM_HARNESS_TARGET={}\n", PROGRAMS.1);
    let _ = writeln!(variables, "VM_HARNESS_TIME_SCALE={}", nested_time_scale(accelerator)?);
    // A guest of an emulated machine is emulated, too.
    let is_emulated = accelerator == Accelerator::Tcg || node.emulated;
    if is_emulated {
        variables.push_str("VM_HARNESS_ACCEL=tcg\n");
    }
    let _ = writeln!(variables, "{SCENARIOS}={}", node.selection(is_emulated).names());
    write(&directory.join(ENVIRONMENT), variables)
}

/// The factor on time limits in the node, whose guests are VMs in a VM.
fn nested_time_scale(accelerator: Accelerator) -> Result<u32, Error> {
    Ok(accelerator.configured_time_scale()?.saturating_mul(4))
}

/// Makes a file system with the contents of `directory`, and room for more.
fn make_disk(label: &str, directory: &Path, disk: &Path) -> Result<(), Error> {
    let size = (size_of(directory)? * 5 / 4).div_ceil(MIB) + 256;
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", label, "-d"]);
    command.arg(directory).arg(disk).arg(format!("{size}M"));
    let spawn = |source| Error::Spawn { program: "mke2fs".to_owned(), source };
    let output = command.output().map_err(spawn)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::File { action: "make", path: disk.into(), source: std::io::Error::other(message) })
}

/// The space that the files below `directory` take.
fn size_of(directory: &Path) -> Result<u64, Error> {
    let mut sum = 0;
    for entry in fs::read_dir(directory).map_err(Error::file("read", directory))? {
        let path = entry.map_err(Error::file("read", directory))?.path();
        let metadata = fs::symlink_metadata(&path).map_err(Error::file("read", &path))?;
        sum += metadata.size().next_multiple_of(4096);
        if metadata.is_dir() {
            sum += size_of(&path)?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_of_kata_is_recognised_by_its_directory() {
        let release = tempfile::tempdir().unwrap();
        let error = kata_directory(release.path()).unwrap_err().to_string();
        assert!(error.contains("opt/kata") && error.contains("archive"), "{error}");
        fs::create_dir_all(release.path().join("opt/kata")).unwrap();
        assert_eq!(kata_directory(release.path()).unwrap(), release.path().join("opt/kata"));
    }

    #[test]
    fn disk_has_room_for_what_is_in_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (contents, disk) = (directory.path().join("contents"), directory.path().join("disk"));
        fs::create_dir_all(contents.join("below")).unwrap();
        fs::write(contents.join("below/file"), vec![1; 3 << 20]).unwrap();
        make_disk("label", &contents, &disk).unwrap();
        assert!(fs::metadata(&disk).unwrap().len() > 3 << 20);
        let error = make_disk("label", &contents, Path::new("/nonexistent/disk")).unwrap_err();
        assert!(error.chain().contains("/nonexistent/disk"), "{}", error.chain());
    }
}
