//! Mounts by descriptor: [open_tree(2)](https://man7.org/linux/man-pages/man2/open_tree.2.html),
//! [move_mount(2)](https://man7.org/linux/man-pages/man2/move_mount.2.html),
//! [mount_setattr(2)](https://man7.org/linux/man-pages/man2/mount_setattr.2.html); and which mounts
//! there are:
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html).

use std::{
    collections::HashSet,
    ffi::CStr,
    fs,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::errno::Errno;

use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    namespace::Target,
};

/// A mount that is nowhere: a copy of the one at `path`, with that file as its root. It ends with
/// its last descriptor, or becomes a mount like others by [`move_onto`].
#[expect(unsafe_code, reason = "open_tree(2) has no safe wrapper in libc or nix")]
pub(crate) fn copy_of(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: `path` ends with a NUL byte and outlives the call, which returns a new descriptor or
    // -1.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts a mount over `file`, which must be in a mount of the calling thread's namespace. Neither is
/// a path that somebody could swap.
#[expect(unsafe_code, reason = "move_mount(2) has no safe wrapper in libc or nix")]
pub(crate) fn move_onto(mount: &impl AsFd, file: &impl AsFd) -> Result<(), Errno> {
    let (from, to) = (mount.as_fd().as_raw_fd(), file.as_fd().as_raw_fd());
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    // SAFETY: both paths are the same empty C string with static lifetime, the rest are numbers.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) };
    Errno::result(result).map(drop)
}

/// Whether the kernel has [`set_propagation`], and with it all that is here (Linux 5.12).
#[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper in libc or nix")]
pub(crate) fn can_set_propagation() -> bool {
    let nothing = std::ptr::null::<libc::mount_attr>();
    // SAFETY: the path is a C string with static lifetime; attributes of no size are refused before
    // they are read.
    let result =
        unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, nothing, 0usize) };
    Errno::result(result) != Err(Errno::ENOSYS)
}

/// How a mount takes part in what happens at its peers' (`MS_PRIVATE`, `MS_UNBINDABLE`).
#[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper in libc or nix")]
pub(crate) fn set_propagation(mount: &impl AsFd, propagation: u64) -> Result<(), Errno> {
    let attributes = libc::mount_attr { attr_set: 0, attr_clr: 0, propagation, userns_fd: 0 };
    let (fd, size) = (mount.as_fd().as_raw_fd(), size_of::<libc::mount_attr>());
    // SAFETY: the path is an empty C string with static lifetime; `attributes` has the size that is
    // given and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size,
        )
    };
    Errno::result(result).map(drop)
}

/// The file systems that are mounted where it matters who can see what is made there.
#[derive(Debug, Default)]
pub struct Mounts {
    guests: HashSet<DeviceNumber>,
    memory: HashSet<DeviceNumber>,
}

impl Mounts {
    /// Those of the calling thread's namespace, which must be the agent's, and those of the
    /// container.
    ///
    /// # Errors
    /// `/proc` cannot be read, or the container has ended.
    pub fn read(target: &Target) -> Result<Mounts> {
        const PATH: &str = "/proc/thread-self/mountinfo";
        let text = fs::read(PATH).map_err(Error::system("read", PATH))?;
        let guests = String::from_utf8_lossy(&text).lines().filter_map(number).collect();
        let of_container = target.proc("mountinfo")?;
        let memory =
            of_container.lines().filter(|line| is_in_memory(line)).filter_map(number).collect();
        Ok(Mounts { guests, memory })
    }

    /// Whether this one is mounted in the guest itself: whatever is on it is seen by others than a
    /// container.
    pub fn have_in_guest(&self, file_system: DeviceNumber) -> bool {
        self.guests.contains(&file_system)
    }

    /// Whether this one is the kernel's own memory, seen from the container. A file system's word
    /// on itself (`statfs`) does not tell: Linux's 9p passes on what the server's directory is on.
    pub fn have_in_memory(&self, file_system: DeviceNumber) -> bool {
        self.memory.contains(&file_system)
    }
}

/// The type follows the hyphen; spaces in what comes before it are escaped.
fn is_in_memory(line: &str) -> bool {
    let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
    matches!(kind, Some("tmpfs" | "ramfs" | "devtmpfs" | "rootfs"))
}

fn number(line: &str) -> Option<DeviceNumber> {
    line.split(' ').nth(2)?.parse().ok()
}

/// Whether what is mounted below the mount that `file` is on would be mounted elsewhere, too.
/// `file` is in the container.
pub(crate) fn is_shared(target: &Target, file: &impl AsFd) -> Result<bool> {
    let info = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    let text = fs::read_to_string(&info).map_err(Error::system("read", info.as_str()))?;
    let id = text
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(str::trim)
        .unwrap_or_default();
    let mounts = target.proc("mountinfo")?;
    Ok(mounts.lines().any(|line| is_shared_mount(line, id)))
}

/// The optional fields stand between the sixth field and a hyphen.
fn is_shared_mount(line: &str, id: &str) -> bool {
    let mut fields = line.split(' ');
    fields.next() == Some(id)
        && fields
            .skip(5)
            .take_while(|field| *field != "-")
            .any(|field| field.starts_with("shared:"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("36 35 0:32 / /dev rw,nosuid shared:5 master:2 - tmpfs tmpfs rw", true)]
    #[case("36 35 0:32 / /dev rw master:2 - tmpfs tmpfs rw", false)]
    #[case("36 35 0:32 / /shared:1 rw - tmpfs shared:5 rw", false)]
    #[case("361 35 0:32 / /dev rw shared:5 - tmpfs tmpfs rw", false)]
    #[case("36", false)]
    fn a_shared_mount_is_told_by_its_optional_fields(#[case] line: &str, #[case] shared: bool) {
        assert_eq!(is_shared_mount(line, "36"), shared);
    }

    #[test]
    fn a_kernel_of_today_can_set_propagation() {
        assert!(can_set_propagation());
    }

    #[rstest]
    #[case("36 35 0:32 / /dev rw,nosuid shared:5 - tmpfs tmpfs rw", true)]
    #[case("1 1 0:2 / / rw - rootfs rootfs rw", true)]
    #[case("36 35 0:32 / /dev/share rw - 9p tmpfs rw,trans=virtio", false)]
    #[case("36 35 0:32 / /dev/\\040-\\040tmpfs rw - fuse.tmpfs tmpfs rw", false)]
    #[case("36", false)]
    fn memory_is_told_by_the_type_that_the_kernel_gives(#[case] line: &str, #[case] memory: bool) {
        assert_eq!(is_in_memory(line), memory);
    }
}
