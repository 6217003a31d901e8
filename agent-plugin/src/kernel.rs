//! What the guest's kernel lacks of what the plugin needs. Each capability is tried and not derived
//! from a version: kernels are configured, patched and restricted (sysctl, seccomp). A trial
//! changes nothing, starts no thread and keeps no descriptor.
//!
//! User namespaces are the exception: only a process with a single thread can make one, and the
//! plugin starts none. Their files in `/proc` tell.

use std::{fs, io, sync::OnceLock};

use nix::{
    errno::Errno,
    sys::inotify::{InitFlags, Inotify},
    unistd::getpid,
};

use crate::{
    cgroup,
    error::Error,
    holders, kernel_file, mount, namespace, pidfd,
    text::{decimal, readable},
    uevent::UeventSocket,
};

/// The guest's kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    /// Names of [`KERNEL_CAPABILITIES`](crate::api::KERNEL_CAPABILITIES).
    pub(crate) missing: Vec<&'static str>,
}

/// The name of a capability, and its trial.
type Trial = (&'static str, fn() -> io::Result<()>);

/// [`cgroup::try_filters`] has the others.
const TRIALS: [Trial; 11] = [
    ("pidfd_open", || Ok(pidfd::open(getpid().as_raw()).map(drop)?)),
    ("openat2", || Ok(namespace::try_openat2()?)),
    ("uevents", try_uevents),
    ("virtio_scsi", || exists("/sys/bus/virtio/drivers/virtio_scsi")),
    ("sd", || exists("/sys/bus/scsi/drivers/sd")),
    ("tmpfs", || Ok(mount::try_tmpfs()?)),
    ("mount_setattr", try_mount_setattr),
    ("user_namespaces", find_user_namespaces),
    ("inotify", || Ok(Inotify::init(InitFlags::IN_CLOEXEC).map(drop)?)),
    ("kcmp", || Ok(holders::try_kcmp()?)),
    ("proc_children", || exists("/proc/thread-self/children")),
];

/// A kernel that has everything.
static COMPLETE: OnceLock<Kernel> = OnceLock::new();

impl Kernel {
    /// What is known of the kernel. A trial of everything takes longer than all else that an attach
    /// looks up, so a kernel that had everything once is not tried again; one that lacks something
    /// may get it, by a module for example.
    pub(crate) fn known() -> Kernel {
        COMPLETE.get().cloned().unwrap_or_else(Kernel::tried)
    }

    /// Tries every capability.
    pub(crate) fn tried() -> Kernel {
        let release = kernel_file::read("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut missing = Vec::new();
        let mut note = |name, tried: io::Result<()>| {
            if tried.is_err_and(|error| is_lacking(&error)) {
                missing.push(name);
            }
        };
        for (name, run) in TRIALS {
            note(name, run());
        }
        if let Err((name, error)) = cgroup::try_filters() {
            note(name, Err(error));
        }
        let kernel = Kernel { release: readable(release.trim_ascii_end(), 64), missing };
        if kernel.missing.is_empty() {
            COMPLETE.get_or_init(|| kernel.clone());
        }
        kernel
    }
}

/// Whether an error says something about the kernel, and not about this moment.
fn is_lacking(error: &io::Error) -> bool {
    const SCARCE: [i32; 5] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::EINTR];
    error.raw_os_error().is_none_or(|errno| !SCARCE.contains(&errno))
}

fn exists(path: &str) -> io::Result<()> {
    fs::symlink_metadata(path).map(drop)
}

fn try_uevents() -> io::Result<()> {
    match UeventSocket::open() {
        Err(error) => match &*error {
            Error::System { source, .. } => match source.raw_os_error() {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => Err(source.kind().into()),
            },
            _ => Ok(()),
        },
        Ok(_) => Ok(()),
    }
}

fn try_mount_setattr() -> io::Result<()> {
    if mount::can_set_propagation() { Ok(()) } else { Err(Errno::ENOSYS.into()) }
}

fn find_user_namespaces() -> io::Result<()> {
    exists("/proc/self/ns/user")?;
    let most = kernel_file::read("/proc/sys/user/max_user_namespaces")?;
    match decimal::<u64>(most.trim_ascii_end()) {
        Some(1..) => Ok(()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::KERNEL_CAPABILITIES;

    #[test]
    fn every_capability_of_the_api_is_tried() {
        let tried = TRIALS.map(|(name, _)| name);
        let of_cgroups = ["device_cgroup", "device_programs", "readable_device_programs"];
        for capability in KERNEL_CAPABILITIES {
            let same = tried.iter().chain(&of_cgroups).filter(|name| **name == capability.name);
            assert_eq!(same.count(), 1, "{}", capability.name);
        }
        assert_eq!(tried.len() + of_cgroups.len(), KERNEL_CAPABILITIES.len());
    }

    #[test]
    fn this_kernel_has_what_needs_no_disk() {
        let needs_guest = ["virtio_scsi", "sd", "user_namespaces"];
        let Kernel { release, mut missing } = Kernel::tried();
        missing.retain(|name| !needs_guest.contains(name));
        assert_eq!(missing, [""; 0], "{release}");
        assert!(!release.is_empty() && !release.contains('\n'), "{release:?}");
    }

    #[test]
    fn a_shortage_is_no_lack() {
        assert!(is_lacking(&io::Error::from_raw_os_error(libc::ENOSYS)));
        assert!(is_lacking(&io::ErrorKind::NotFound.into()));
        assert!(!is_lacking(&io::Error::from_raw_os_error(libc::EMFILE)));
    }
}
