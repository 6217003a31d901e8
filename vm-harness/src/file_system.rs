//! File systems on volumes, made and checked on the host by their own programs (`mkfs.ext4`,
//! `xfs_repair`), and read there after an unplug, by a mount in a namespace that ends at once.
//!
//! They are filled without a mount: the programs copy a directory.

use std::{fmt, fs, path::Path, process::Command};

use tempfile::{TempDir, TempPath};

use crate::{LoopOptions, Volume, volume::sparse_file};

const MIB: u64 = 1 << 20;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// `mkfs.ext4`.
    Ext4,
    /// `mkfs.xfs`.
    Xfs,
    /// `mkfs.btrfs`.
    Btrfs,
    /// Read-only by its format.
    Erofs,
    /// Read-only by its format.
    Squashfs,
    /// Made empty.
    Vfat,
}

impl FileSystem {
    /// Returns the kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
            Self::Vfat => "vfat",
        }
    }

    /// Returns the size that a volume gets for it: little more than the least that its program
    /// makes.
    pub fn usual_size(self) -> u64 {
        match self {
            Self::Xfs => 304 * MIB,
            Self::Btrfs => 128 * MIB,
            _ => 16 * MIB,
        }
    }

    /// Makes a volume with it, and with these files: the name, and the contents.
    ///
    /// # Panics
    /// Its program is missing, or fails.
    pub fn volume(self, files: &[(&str, &[u8])]) -> Volume {
        Volume::over(self.image(self.usual_size(), files))
    }

    /// Makes a volume of `size` bytes with it.
    ///
    /// # Panics
    /// As [`FileSystem::volume`].
    pub fn volume_of(self, size: u64, files: &[(&str, &[u8])]) -> Volume {
        Volume::over(self.image(size, files))
    }

    /// Makes the same as a loop device.
    ///
    /// # Panics
    /// As [`FileSystem::volume`], or `losetup` fails.
    pub fn loop_device(self, files: &[(&str, &[u8])], options: LoopOptions) -> Volume {
        Volume::loop_over(self.image(self.usual_size(), files), options)
    }

    fn image(self, size: u64, files: &[(&str, &[u8])]) -> TempPath {
        let source = tempfile::tempdir().expect("a temporary directory");
        let root = source.path().join("root");
        fs::create_dir(&root).expect("a directory in it");
        for (name, contents) in files {
            fs::write(root.join(name), contents).expect("a file in it");
        }
        let image = sparse_file(size);
        let [root, image_name] = [&root, &*image].map(|path| path.to_string_lossy().into_owned());
        let (root, name) = (root.as_str(), image_name.as_str());
        match self {
            Self::Ext4 => run("mkfs.ext4", &["-q", "-F", "-d", root, name]),
            Self::Xfs => {
                let list = prototype(&source, root, files);
                run("mkfs.xfs", &["-q", "-f", "-p", &list, name])
            }
            Self::Btrfs => run("mkfs.btrfs", &["-q", "-f", "--rootdir", root, name]),
            Self::Erofs => run("mkfs.erofs", &[name, root]),
            Self::Squashfs => run("mksquashfs", &[root, name, "-noappend", "-quiet"]),
            Self::Vfat => {
                assert!(files.is_empty(), "mkfs.vfat copies no files");
                run("mkfs.vfat", &[name])
            }
        }
        .unwrap_or_else(|error| panic!("{error}"));
        image
    }

    /// Checks, without changing it, that the one on this volume is consistent and was unmounted.
    ///
    /// # Errors
    /// It is not, or its program is missing.
    pub fn check(self, volume: &Volume) -> Result<(), String> {
        let image = volume.name();
        match self {
            Self::Ext4 => {
                run("e2fsck", &["-f", "-n", image])?;
                let state = run("dumpe2fs", &["-h", image])?;
                if state.contains("needs_recovery") {
                    return Err(format!("it was not unmounted: {state}"));
                }
                Ok(())
            }
            Self::Xfs => run("xfs_repair", &["-n", image]).map(drop),
            Self::Btrfs => run("btrfs", &["check", "--readonly", image]).map(drop),
            Self::Erofs => run("fsck.erofs", &[image]).map(drop),
            Self::Squashfs => run("unsquashfs", &["-lls", image]).map(drop),
            Self::Vfat => run("fsck.vfat", &["-n", image]).map(drop),
        }
    }

    /// As [`FileSystem::check`], for a test.
    ///
    /// # Panics
    /// It is not consistent.
    pub fn assert_consistent(self, volume: &Volume) {
        self.check(volume).unwrap_or_else(|error| panic!("{self} on {}: {error}", volume.name()));
    }

    /// Returns the contents of a file on the volume. The host mounts it for that, unless a program
    /// reads it.
    ///
    /// # Panics
    /// The host cannot mount it, or there is no such file.
    pub fn read(self, volume: &Volume, file: &str) -> Vec<u8> {
        assert!(!file.starts_with('/'), "{file} is relative to the root of the file system");
        if self == Self::Ext4 {
            let cat = format!("cat /{file}");
            let read = Command::new("debugfs").args(["-R", &cat, volume.name()]).output();
            let read = read.expect("debugfs is installed (ci/setup)");
            // It prints its name, and ends with 0 also if there is no such file.
            let error = String::from_utf8_lossy(&read.stderr);
            assert_eq!(error.trim().lines().count(), 1, "{file} of {}: {error}", volume.name());
            return read.stdout;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let script = r#"mount -t "$1" -o ro "$2" "$3" && cat "$3/$4""#;
        let (image, place) = (volume.path(), directory.path());
        let read = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", self.name()])
            .args([image, place, Path::new(file)])
            .output()
            .expect("unshare is installed");
        let error = String::from_utf8_lossy(&read.stderr);
        assert!(read.status.success(), "cannot read {file} of {self} {}: {error}", volume.name());
        read.stdout
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Writes the list of files that `mkfs.xfs -p` reads.
fn prototype(directory: &TempDir, root: &str, files: &[(&str, &[u8])]) -> String {
    let mut text = "/\n0 0\nd--755 0 0\n".to_owned();
    for (name, _) in files {
        text += &format!("{name} ---644 0 0 {root}/{name}\n");
    }
    text += "$\n";
    let path = directory.path().join("prototype");
    fs::write(&path, text).expect("a file in a temporary directory");
    path.to_str().expect("a path of the harness is UTF-8").to_owned()
}

/// Runs a program that has to succeed, and returns what it printed.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let finished = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program} (ci/setup --test installs it): {error}"))?;
    let text = [finished.stdout, finished.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    match finished.status.success() {
        true => Ok(text),
        false => Err(format!("{program} {arguments:?}: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Only what is written takes space. As root, the host also reads it.
    #[rstest]
    #[case(FileSystem::Ext4)]
    #[case(FileSystem::Xfs)]
    #[case(FileSystem::Btrfs)]
    #[case(FileSystem::Erofs)]
    #[case(FileSystem::Squashfs)]
    fn file_system_has_its_files_and_is_consistent(#[case] kind: FileSystem) {
        let volume = kind.volume(&[("hello", b"from the host"), ("empty", b"")]);
        kind.assert_consistent(&volume);
        if nix::unistd::geteuid().is_root() {
            assert_eq!(kind.read(&volume, "hello"), b"from the host");
            assert_eq!(kind.read(&volume, "empty"), b"");
        }
    }

    #[test]
    #[should_panic(expected = "e2fsck")]
    fn broken_file_system_is_not_consistent() {
        let volume = FileSystem::Ext4.volume(&[]);
        volume.write(0, &[0; 64 << 10]);
        FileSystem::Ext4.assert_consistent(&volume);
    }
}
