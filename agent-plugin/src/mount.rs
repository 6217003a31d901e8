//! Mounts by descriptor: [fsmount(2)](https://man7.org/linux/man-pages/man2/fsmount.2.html),
//! [open_tree(2)](https://man7.org/linux/man-pages/man2/open_tree.2.html),
//! [move_mount(2)](https://man7.org/linux/man-pages/man2/move_mount.2.html),
//! [mount_setattr(2)](https://man7.org/linux/man-pages/man2/mount_setattr.2.html); and which mounts
//! exist:
//! [`/proc/PID/mountinfo`](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html).

use std::{
    cell::Cell,
    ffi::CStr,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::errno::Errno;

use crate::{
    block::DeviceNumber,
    error::Result,
    inode::Inode,
    namespace::{NamespaceTask, Root, Target, mountinfo_of_thread, mounts_of_thread, own_proc},
    procfs::mountinfo::MountLine,
};

/// Returns a detached mount: a copy of the one at `path`, with that file as its root. It is freed
/// with its last descriptor, or attached by [`move_onto`].
#[expect(unsafe_code, reason = "open_tree(2) has no safe wrapper in libc or nix")]
pub(crate) fn copy_of(path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: `path` ends with a NUL byte and outlives the call, which returns a new descriptor or
    // -1.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns a detached mount of a new tmpfs. It is freed with its last descriptor.
#[expect(unsafe_code, reason = "fsopen(2) and the calls after it have no wrappers in libc or nix")]
pub(crate) fn new_tmpfs() -> Result<OwnedFd, Errno> {
    const CLOSE_ON_EXEC: libc::c_uint = 1;
    const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
    let descriptor = |fd: libc::c_long| -> Result<OwnedFd, Errno> {
        let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
        // SAFETY: the descriptor is new, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: the name is a C string with static lifetime; the call returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), CLOSE_ON_EXEC) };
    let context = descriptor(fd)?;
    let (fd, none) = (context.as_raw_fd(), std::ptr::null::<libc::c_char>());
    // SAFETY: this command takes no key and no value, only numbers.
    let created =
        unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) };
    Errno::result(created)?;
    // SAFETY: only numbers are passed; the call returns a new descriptor or -1.
    descriptor(unsafe { libc::syscall(libc::SYS_fsmount, fd, CLOSE_ON_EXEC, 0) })
}

/// Attaches a mount over `file`, which must be in a mount of the calling thread's namespace.
/// Neither is given by a path, which another process could replace.
#[expect(unsafe_code, reason = "move_mount(2) has no safe wrapper in libc or nix")]
pub(crate) fn move_onto(mount: &impl AsFd, file: &impl AsFd) -> Result<(), Errno> {
    let (from, to) = (mount.as_fd().as_raw_fd(), file.as_fd().as_raw_fd());
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    let empty = c"".as_ptr();
    // SAFETY: both paths are the same empty C string with static lifetime, the rest are numbers.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) };
    Errno::result(result).map(drop)
}

/// Whether the kernel has [`set_propagation`], and with it every call of this file (Linux 5.12).
#[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper in libc or nix")]
pub(crate) fn can_set_propagation() -> bool {
    let nothing = std::ptr::null::<libc::mount_attr>();
    // SAFETY: the path is a C string with static lifetime; attributes of no size are refused before
    // they are read.
    let result =
        unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, nothing, 0usize) };
    Errno::result(result) != Err(Errno::ENOSYS)
}

/// Tries whether a tmpfs can be mounted that is limited as that of a bind node is. A kernel without
/// `CONFIG_TMPFS` has one of this name that takes no options. Nothing is mounted
/// ([fsconfig(2)](https://man7.org/linux/man-pages/man2/fsconfig.2.html), Linux 5.2).
#[expect(unsafe_code, reason = "fsopen(2) and fsconfig(2) have no safe wrapper in libc or nix")]
pub(crate) fn try_tmpfs() -> Result<(), Errno> {
    const FSOPEN_CLOEXEC: libc::c_uint = 1;
    const FSCONFIG_SET_STRING: libc::c_uint = 1;
    // SAFETY: the name is a C string with static lifetime.
    let fd = unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let (key, value) = (c"nr_inodes".as_ptr(), c"4".as_ptr());
    // SAFETY: both texts are C strings with static lifetime, the rest are numbers.
    let result = unsafe {
        libc::syscall(libc::SYS_fsconfig, fd.as_raw_fd(), FSCONFIG_SET_STRING, key, value, 0)
    };
    Errno::result(result).map(drop)
}

/// Sets the propagation of a mount (`MS_PRIVATE`, `MS_UNBINDABLE`).
pub(crate) fn set_propagation(mount: &impl AsFd, propagation: u64) -> Result<(), Errno> {
    set_attributes(mount, libc::mount_attr { attr_set: 0, attr_clr: 0, propagation, userns_fd: 0 })
}

/// Lets no device node be opened through this mount from now on.
pub(crate) fn set_nodev(mount: &impl AsFd) -> Result<(), Errno> {
    let attr_set = libc::MOUNT_ATTR_NODEV;
    set_attributes(mount, libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

/// Gives a mount that is attached nowhere the ids of a user namespace. `EINVAL`: its file system
/// cannot be mounted so.
pub(crate) fn set_id_map(mount: &impl AsFd, namespace: &impl AsFd) -> Result<(), Errno> {
    let userns_fd = u64::try_from(namespace.as_fd().as_raw_fd()).map_err(|_| Errno::EBADF)?;
    let attr_set = libc::MOUNT_ATTR_IDMAP;
    set_attributes(mount, libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd })
}

#[expect(unsafe_code, reason = "mount_setattr(2) has no safe wrapper in libc or nix")]
fn set_attributes(mount: &impl AsFd, attributes: libc::mount_attr) -> Result<(), Errno> {
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

/// The mounts and file systems that decide how a node can be made: a node must not be seen outside
/// of its container.
#[derive(Debug, Default)]
pub struct Mounts {
    in_guest: Vec<DeviceNumber>,
    inside: Inside,
}

/// The mounts of a container.
#[derive(Debug)]
enum Inside {
    /// Of a list that was read as a whole: file systems in memory, and mounts that are shared.
    Listed { in_memory: Vec<DeviceNumber>, shared: Vec<u64> },
    /// Those of the calling thread's namespace, by the agent's own `/proc`; and the mount that was
    /// looked at last: the paths of a request are on few mounts.
    OfThread { proc: OwnedFd, last: Cell<Option<(Place, Around)>> },
}

impl Default for Inside {
    fn default() -> Inside {
        Inside::Listed { in_memory: Vec::new(), shared: Vec::new() }
    }
}

/// A mount and a file system, as a directory shows them; the mount is 0 before Linux 5.8.
type Place = (u64, DeviceNumber);

/// What decides how a node can be made in a directory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Around {
    /// The file system is mounted in the guest itself, so that its files are visible outside of the
    /// container.
    pub(crate) is_in_guest: bool,
    /// The file system is in the kernel's own memory. `statfs` does not answer this: Linux's 9p
    /// reports the type of the file system on the server.
    pub(crate) is_in_memory: bool,
    /// A mount below the directory would propagate to other mounts. The kernel itself refuses one
    /// below a mount that becomes shared later.
    pub(crate) is_shared: bool,
}

impl Mounts {
    /// Starts `work` on a thread inside the namespace of a container, with the mounts there and
    /// those of the calling thread's namespace, which must be the agent's.
    ///
    /// # Errors
    /// As of [`Target::enter`]. The thread: `/proc` cannot be read.
    pub fn visit<T: Send + 'static>(
        target: &Target,
        work: impl FnOnce(&Root, &Mounts) -> Result<T> + Send + 'static,
    ) -> Result<NamespaceTask<T>> {
        target.enter_with(Outside::see, move |root, Outside { proc, in_guest }| {
            let inside = Inside::OfThread { proc, last: Cell::default() };
            work(root, &Mounts { in_guest, inside })
        })
    }

    /// The mounts of the calling thread's namespace, which must be the agent's, and those of a
    /// container, of which this is the mountinfo.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of(inside: &[u8]) -> Result<Mounts> {
        Ok(Outside::see()?.and(inside))
    }

    /// What they are around a directory.
    pub(crate) fn around(&self, directory: &Inode) -> Result<Around> {
        let mut around = match &self.inside {
            Inside::Listed { in_memory, shared } => Around {
                is_in_memory: in_memory.contains(&directory.file_system),
                is_shared: shared.contains(&directory.mount),
                ..Around::default()
            },
            Inside::OfThread { proc, last } => {
                let place = (directory.mount, directory.file_system);
                let known = last.get().filter(|(known, _)| *known == place);
                let around = match known {
                    Some((_, around)) => around,
                    None => around_in_thread(proc, directory)?,
                };
                last.set(Some((place, around)));
                around
            }
        };
        around.is_in_guest = self.in_guest.contains(&directory.file_system);
        Ok(around)
    }
}

/// Reads mountinfo as far as to the directory's own mount: those that were made later, such as
/// those of volumes, come behind it.
fn around_in_thread(proc: &OwnedFd, directory: &Inode) -> Result<Around> {
    let mut around = Around::default();
    mounts_of_thread(proc, |mount| {
        let is_it = u64::from(mount.id) == directory.mount;
        let is_same = mount.number == directory.file_system;
        around.is_in_memory |= is_same && is_in_memory(mount.file_system);
        around.is_shared |= is_it && mount.is_shared;
        // Each mount of a file system shows its type. A file of some has another number than that.
        is_it && is_same
    })?;
    Ok(around)
}

/// What a thread sees before it enters the namespace of a container.
struct Outside {
    /// The agent's own `/proc`.
    proc: OwnedFd,
    in_guest: Vec<DeviceNumber>,
}

impl Outside {
    fn see() -> Result<Outside> {
        let proc = own_proc()?;
        let text = mountinfo_of_thread(&proc)?;
        let mut in_guest = Vec::new();
        for mount in MountLine::all(&text) {
            in_guest.push(mount.number);
        }
        Ok(Outside { proc, in_guest })
    }

    /// With the mountinfo of the container.
    fn and(self, inside: &[u8]) -> Mounts {
        let (mut in_memory, mut shared) = (Vec::new(), Vec::new());
        for mount in MountLine::all(inside) {
            if is_in_memory(mount.file_system) {
                in_memory.push(mount.number);
            }
            if mount.is_shared {
                shared.push(mount.id.into());
            }
        }
        Mounts { in_guest: self.in_guest, inside: Inside::Listed { in_memory, shared } }
    }
}

/// By the file system's type.
fn is_in_memory(file_system: &[u8]) -> bool {
    matches!(file_system, b"tmpfs" | b"ramfs" | b"devtmpfs" | b"rootfs")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn the_kernel_can_make_bind_nodes() {
        assert!(can_set_propagation() && try_tmpfs().is_ok());
    }

    #[rstest]
    #[case("/dev")]
    #[case("/proc")]
    #[case("/")]
    fn a_directory_has_the_same_mounts_around_it_in_a_list_as_in_one_that_is_read_so_far(
        #[case] directory: &str,
    ) {
        let directory = Inode::of(&std::fs::File::open(directory).unwrap()).unwrap();
        let proc = own_proc().unwrap();
        let listed = Mounts::of(&mountinfo_of_thread(&proc).unwrap()).unwrap();
        let inside = Inside::OfThread { proc, last: Cell::default() };
        let mounts = Mounts { in_guest: listed.in_guest.clone(), inside };
        let around = listed.around(&directory).unwrap();
        // The second time without the list.
        assert_eq!([(); 2].map(|()| mounts.around(&directory).unwrap()), [around; 2]);
    }

    #[rstest]
    #[case("36 35 0:32 / /dev rw,nosuid shared:5 - tmpfs tmpfs rw", true)]
    #[case("1 1 0:2 / / rw - rootfs rootfs rw", true)]
    #[case("36 35 0:32 / /dev/share rw - 9p tmpfs rw,trans=virtio", false)]
    #[case("36 35 0:32 / /dev/\\040-\\040tmpfs rw - fuse.tmpfs tmpfs rw", false)]
    fn memory_is_recognized_by_the_type_that_the_kernel_shows(
        #[case] line: &str,
        #[case] memory: bool,
    ) {
        assert_eq!(is_in_memory(MountLine::parse(line.as_bytes()).unwrap().file_system), memory);
    }
}
