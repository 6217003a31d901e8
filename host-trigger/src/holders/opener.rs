//! Who has block devices or files open
//! ([`/proc/PID/fd`](https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html)), by number and not
//! by name: a process may have its own node in a `/dev` of its own. An exclusive open does not see
//! those who did not ask for one, as Kata's own QEMU does not.

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::sys::stat::makedev;

use super::Held;
use crate::block_sysfs::names;

/// A process with one of them open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opener {
    pub(crate) pid: i32,
    pub(crate) held: Held,
    /// For writing, perhaps among others.
    pub(crate) writes: bool,
}

/// Every other process that has one of `wanted` open. One whose descriptors may not be read is not
/// seen.
pub(crate) fn openers(wanted: &[Held]) -> Vec<Opener> {
    let own = std::process::id().to_string();
    let mut found: Vec<Opener> = Vec::new();
    for name in names(Path::new("/proc")).filter(|name| *name != own) {
        let Ok(pid) = name.parse() else { continue };
        let descriptors = PathBuf::from(format!("/proc/{name}/fd"));
        for descriptor in names(&descriptors).map(|name| descriptors.join(name)) {
            let Some(held) = behind(&descriptor).filter(|held| wanted.contains(held)) else {
                continue;
            };
            // The link's permissions are the descriptor's mode.
            let writes =
                fs::symlink_metadata(&descriptor).is_ok_and(|link| link.mode() & 0o200 != 0);
            match found.iter_mut().find(|known| known.pid == pid && known.held == held) {
                Some(known) => known.writes |= writes,
                None => found.push(Opener { pid, held, writes }),
            }
        }
    }
    found
}

/// What a descriptor is open on, without a word to whoever serves its file system: that may be a
/// server that does not answer.
#[expect(unsafe_code, reason = "neither std nor nix wraps statx, and stat asks the server")]
fn behind(descriptor: &Path) -> Option<Held> {
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
    // SAFETY: the structure is valid when it is zeroed, and the call has filled it.
    let found = unsafe { found.assume_init() };
    match u32::from(found.stx_mode) & libc::S_IFMT {
        libc::S_IFBLK => {
            Some(Held::Block(makedev(found.stx_rdev_major.into(), found.stx_rdev_minor.into())))
        }
        libc::S_IFREG => Some(Held::File(
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
    fn readers_and_writers_are_told_apart() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let held = Held::at(file.path()).unwrap();
        let mut reader = Command::new("sleep")
            .arg("60")
            .stdin(File::open(file.path()).unwrap())
            .spawn()
            .unwrap();
        let mut writer =
            Command::new("sleep").arg("60").stdin(file.reopen().unwrap()).spawn().unwrap();
        let mut found = openers(&[held]);
        for child in [&mut reader, &mut writer] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        found.retain(|opener| {
            [reader.id(), writer.id()].contains(&u32::try_from(opener.pid).unwrap())
        });
        found.sort_by_key(|opener| opener.writes);
        let expected = [(reader.id(), false), (writer.id(), true)];
        let expected =
            expected.map(|(pid, writes)| Opener { pid: i32::try_from(pid).unwrap(), held, writes });
        assert_eq!(found, expected);
    }
}
