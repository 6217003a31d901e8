//! Processes that have block devices or files open
//! ([`/proc/PID/fd`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html)). They are found by
//! device and inode number and not by path: a process may use a node of its own in a private
//! `/dev`. An exclusive open does not detect processes that opened the device without `O_EXCL`;
//! Kata's own QEMU is one of these.

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::makedev;

use super::FileId;
use crate::host::sysfs::names;

/// A process that has one of the wanted files open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opener {
    pub(crate) pid: i32,
    pub(crate) file_id: FileId,
    /// At least one of its descriptors can write.
    pub(crate) writes: bool,
}

/// Returns every other process that has one of `wanted` open. A process whose descriptors this one
/// is not permitted to read is not found.
pub(crate) fn openers(wanted: &[FileId]) -> Vec<Opener> {
    let own = std::process::id().to_string();
    let mut found: Vec<Opener> = Vec::new();
    for name in names(Path::new("/proc")).filter(|name| *name != own) {
        let Ok(pid) = name.parse() else { continue };
        let descriptors = PathBuf::from(format!("/proc/{name}/fd"));
        for descriptor in names(&descriptors).map(|name| descriptors.join(name)) {
            let Some(file_id) = file_of(&descriptor).filter(|file_id| wanted.contains(file_id))
            else {
                continue;
            };
            // The link's permissions are the descriptor's access mode.
            let writes =
                fs::symlink_metadata(&descriptor).is_ok_and(|link| link.mode() & 0o200 != 0);
            match found.iter_mut().find(|known| known.pid == pid && known.file_id == file_id) {
                Some(known) => known.writes |= writes,
                None => found.push(Opener { pid, file_id, writes }),
            }
        }
    }
    found
}

/// Returns what a descriptor refers to, without a request to the server of its file system: a
/// network or FUSE server may not reply.
#[expect(
    unsafe_code,
    reason = "neither std nor nix wraps statx, and stat sends a request to the server"
)]
fn file_of(descriptor: &Path) -> Option<FileId> {
    let path = CString::new(descriptor.as_os_str().as_bytes()).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_TYPE | libc::STATX_INO;
    // SAFETY: the path ends with a NUL, and the call writes one `struct statx` to the address,
    // which is valid for the call.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            mask,
            found.as_mut_ptr(),
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: the zeroed structure is valid, and the call has filled it.
    let found = unsafe { found.assume_init() };
    match u32::from(found.stx_mode) & libc::S_IFMT {
        libc::S_IFBLK => {
            Some(FileId::Block(makedev(found.stx_rdev_major.into(), found.stx_rdev_minor.into())))
        }
        libc::S_IFREG => Some(FileId::File(
            makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()),
            found.stx_ino,
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, process::Command};

    use super::*;

    #[test]
    fn readers_and_writers_are_distinguished() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file_id = FileId::at(file.path()).unwrap();
        let mut reader = Command::new("sleep")
            .arg("60")
            .stdin(File::open(file.path()).unwrap())
            .spawn()
            .unwrap();
        let mut writer =
            Command::new("sleep").arg("60").stdin(file.reopen().unwrap()).spawn().unwrap();
        let mut found = openers(&[file_id]);
        for child in [&mut reader, &mut writer] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        found.retain(|opener| {
            [reader.id(), writer.id()].contains(&u32::try_from(opener.pid).unwrap())
        });
        found.sort_by_key(|opener| opener.writes);
        let expected = [(reader.id(), false), (writer.id(), true)];
        let expected = expected.map(|(pid, writes)| Opener {
            pid: i32::try_from(pid).unwrap(),
            file_id,
            writes,
        });
        assert_eq!(found, expected);
    }
}
