//! The guest's mounts, by [`mount(2)`](https://man7.org/linux/man-pages/man2/mount.2.html).
//!
//! The kernel's `rootfs` cannot be the old root of `pivot_root(2)`, which container runtimes call.
//! A bind mount of `/` that is moved to `/` and entered with `chroot(2)` is an ordinary mount, and
//! needs no copy of the image.

use std::{env, fs};

use nix::{
    mount::{MsFlags, mount},
    unistd::chroot,
};

use crate::error::{Error, at};

/// An empty directory of the image, the temporary mount point of the new root.
const NEW_ROOT: &str = "/n";

/// Makes the root an ordinary mount, then mounts the file systems that every program expects.
pub(crate) fn prepare() -> Result<(), Error> {
    mount_at(Some("/"), NEW_ROOT, None, MsFlags::MS_BIND)?;
    env::set_current_dir(NEW_ROOT).map_err(at(NEW_ROOT))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|e| at("/")(e.into()))?;
    chroot(".").map_err(|e| at("/")(e.into()))?;
    env::set_current_dir("/").map_err(at("/"))?;
    let kernel = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount_at(Some("proc"), "/proc", Some("proc"), kernel)?;
    mount_at(Some("sysfs"), "/sys", Some("sysfs"), kernel)?;
    mount_at(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::MS_NOSUID)?;
    fs::create_dir_all("/dev/pts").map_err(at("/dev/pts"))?;
    mount_at(Some("devpts"), "/dev/pts", Some("devpts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    mount_at(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV)
}

fn mount_at(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: MsFlags,
) -> Result<(), Error> {
    mount(source, target, kind, flags, None::<&str>).map_err(|errno| at(target)(errno.into()))
}
