//! The contents of the initramfs: which files, and their paths in the guest.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, cpio::Archive, error::at, kernel::Kernel, library, module_lists};

/// The busybox applets in a container's `/bin`.
const APPLETS: [&str; 58] = [
    "awk",
    "blkid",
    "blockdev",
    "cat",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dmesg",
    "du",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "fsync",
    "grep",
    "head",
    "hexdump",
    "id",
    "kill",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "mv",
    "nc",
    "od",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "sync",
    "tail",
    "tee",
    "test",
    "touch",
    "tr",
    "true",
    "umount",
    "wc",
];

/// The host's files that an image contains, except the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// PID 1 until it executes the agent; static.
    pub init: PathBuf,
    /// The agent under test. Shared libraries that it needs are added.
    pub agent: PathBuf,
    /// Inspects the guest for the harness; static.
    pub observer: PathBuf,
    /// Connects to an agent from inside the guest; static.
    pub probe: Option<PathBuf>,
    /// The container runtime, with its libraries.
    pub crun: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
    /// Additional programs, installed in `/usr/sbin` with their libraries.
    pub tools: Vec<PathBuf>,
    /// Unpacked packages, whose libraries take precedence over this machine's.
    pub trees: Vec<PathBuf>,
    /// Directories whose files are copied over the guest's root.
    pub extra: Vec<PathBuf>,
    /// Single files: the path in the guest, and the file on the host.
    #[serde(default)]
    pub files: Vec<(String, PathBuf)>,
}

/// Collects the initramfs.
///
/// # Errors
/// A file is missing or has the wrong type.
pub fn initramfs(kernel: &Kernel, programs: &Programs) -> Result<Archive, Error> {
    let mut archive = Archive::default();
    for directory in ["dev", "etc", "n", "proc", "root", "run", "sys"] {
        archive.directory(directory, 0o755);
    }
    archive.directory("tmp", 0o1777);
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n");

    static_program(&mut archive, "init", &programs.init)?;
    static_program(&mut archive, "usr/bin/observer", &programs.observer)?;
    if let Some(probe) = &programs.probe {
        static_program(&mut archive, "usr/bin/agent-probe", probe)?;
    }
    static_program(&mut archive, "bin/busybox", &programs.busybox)?;
    archive.link("bin/sh", "busybox");
    let trees = &programs.trees;
    // An agent that was built on another machine brings its libraries in `extra`.
    let for_agent: Vec<PathBuf> = programs.extra.iter().chain(trees).cloned().collect();
    dynamic_program(&mut archive, "usr/bin/agent", &programs.agent, &for_agent)?;
    dynamic_program(&mut archive, "usr/bin/crun", &programs.crun, trees)?;
    for tool in &programs.tools {
        let name = tool.file_name().unwrap_or_default().to_string_lossy();
        dynamic_program(&mut archive, &format!("usr/sbin/{name}"), tool, trees)?;
    }

    module_lists::add(&mut archive, kernel)?;
    container_root(&mut archive, "ctr/rootfs", &programs.busybox)?;
    for directory in &programs.extra {
        overlay(&mut archive, directory, "")?;
    }
    for (inside, file) in &programs.files {
        archive.file(inside, 0o644, fs::read(file).map_err(at(file))?);
    }
    Ok(archive)
}

fn static_program(archive: &mut Archive, path: &str, program: &Path) -> Result<(), Error> {
    if !library::is_static(program)? {
        return Err(Error::NotStatic(program.to_owned()));
    }
    archive.file(path, 0o755, fs::read(program).map_err(at(program))?);
    Ok(())
}

fn dynamic_program(
    archive: &mut Archive,
    path: &str,
    program: &Path,
    trees: &[PathBuf],
) -> Result<(), Error> {
    archive.file(path, 0o755, fs::read(program).map_err(at(program))?);
    for (inside, library) in library::needed_by(program, &Path::new("/").join(path), trees)? {
        archive.file(&inside.to_string_lossy(), 0o755, fs::read(&library).map_err(at(&library))?);
    }
    Ok(())
}

/// Adds a root file system for containers: busybox and the files that its applets need.
fn container_root(archive: &mut Archive, root: &str, busybox: &Path) -> Result<(), Error> {
    for directory in ["dev", "proc", "sys", "root", "mnt"] {
        archive.directory(&format!("{root}/{directory}"), 0o755);
    }
    archive.directory(&format!("{root}/tmp"), 0o1777);
    archive.file(
        &format!("{root}/etc/passwd"),
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
    );
    archive.file(&format!("{root}/etc/group"), 0o644, "root:x:0:\nuser:x:1000:\n");
    static_program(archive, &format!("{root}/bin/busybox"), busybox)?;
    for applet in APPLETS {
        archive.link(&format!("{root}/bin/{applet}"), "busybox");
    }
    Ok(())
}

/// Adds the files below `directory` at `prefix`, with their modes.
fn overlay(archive: &mut Archive, directory: &Path, prefix: &str) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let path = entry.map_err(at(directory))?.path();
        let target = format!("{prefix}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        let metadata = fs::symlink_metadata(&path).map_err(at(&path))?;
        if metadata.is_dir() {
            archive.directory(&target, metadata.mode() & 0o7777);
            overlay(archive, &path, &target)?;
        } else if metadata.is_symlink() {
            archive.link(&target, &fs::read_link(&path).map_err(at(&path))?.to_string_lossy());
        } else {
            archive.file(
                &target,
                metadata.permissions().mode() & 0o7777,
                fs::read(&path).map_err(at(&path))?,
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn an_overlay_keeps_links_and_modes_and_replaces_files() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("etc/d")).unwrap();
        fs::write(directory.path().join("etc/policy"), "new").unwrap();
        fs::set_permissions(directory.path().join("etc/policy"), fs::Permissions::from_mode(0o640))
            .unwrap();
        symlink("policy", directory.path().join("etc/link")).unwrap();
        let (mut built, mut expected) = (Archive::default(), Archive::default());
        built.file("etc/policy", 0o644, "old");
        overlay(&mut built, directory.path(), "").unwrap();
        expected.directory("etc/d", 0o755);
        expected.file("etc/policy", 0o640, "new");
        expected.link("etc/link", "policy");
        assert_eq!(built.to_bytes().unwrap(), expected.to_bytes().unwrap());
    }

    #[test]
    fn a_dynamic_program_is_refused_where_a_static_one_is_required() {
        let own = std::env::current_exe().unwrap();
        let error = static_program(&mut Archive::default(), "init", &own).unwrap_err();
        assert!(error.to_string().contains("is not a static program"), "{error}");
    }
}
