//! A `/dev` of a thread's own, with one device node in it: a tmpfs in a mount namespace that the
//! thread makes for a moment and that ends with it
//! ([mount_namespaces(7)](https://man7.org/linux/man-pages/man7/mount_namespaces.7.html)).
//!
//! The node has a name that means something here, and is visible nowhere else.

use std::ffi::{CStr, CString};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, mknod, umask},
};

use crate::{
    block::DeviceNumber,
    error::{Error, Result},
    named::c_name,
};

/// The mount point of the private tmpfs, over the guest's devices, in the thread's own namespace.
pub(crate) const PATH: &CStr = c"/dev";

/// What the tmpfs may do, in addition to device nodes.
pub(crate) const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

const NONE: Option<&CStr> = None;

/// Makes the node `name` of the block device `number`, on a tmpfs whose source is `source`, and
/// returns its path. The calling thread must end soon: it has left its namespace, and its umask is
/// 0.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn enter(source: &str, name: &str, number: DeviceNumber, mode: Mode) -> Result<CString> {
    isolate()?;
    make(source, name, number, mode)
}

/// Gives the calling thread a mount namespace of its own, for [`make`]. It must end soon.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system("unshare", &"CLONE_NEWNS"))?;
    // Mounts from now on do not propagate.
    mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(Error::system("mount", &"MS_PRIVATE"))
}

/// As [`enter`], on a thread that is isolated, and has [left](leave) the tmpfs of another node.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn make(source: &str, name: &str, number: DeviceNumber, mode: Mode) -> Result<CString> {
    let path = [PATH.to_bytes(), b"/", name.as_bytes()].concat();
    let path = c_name(&path).map_err(Error::system("mknod", &"a node"))?;
    let source = c_name(source.as_bytes()).map_err(Error::system("mount", &"a tmpfs"))?;
    mount(Some(&*source), PATH, Some(c"tmpfs"), FLAGS, Some(c"size=4k,nr_inodes=4,mode=0711"))
        .map_err(Error::system("mount", &"a tmpfs"))?;
    umask(Mode::empty());
    mknod(&*path, SFlag::S_IFBLK, mode, number.to_raw())
        .map_err(Error::system("mknod", &"a node"))?;
    Ok(path)
}

/// Unmounts the tmpfs now, and not when the kernel gets round to freeing the thread's namespace.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn leave() -> Result<(), Errno> {
    umount2(PATH, MntFlags::MNT_DETACH)
}
