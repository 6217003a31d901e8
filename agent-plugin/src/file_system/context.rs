//! Mounts a file system without a path:
//! [fsopen(2)](https://man7.org/linux/man-pages/man2/fsopen.2.html),
//! [fsconfig(2)](https://man7.org/linux/man-pages/man2/fsconfig.2.html),
//! [fsmount(2)](https://man7.org/linux/man-pages/man2/fsmount.2.html) (Linux 5.2).
//!
//! A descriptor of fsopen has a log of what the kernel says about the file system; each read
//! returns one message.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
};

use nix::{errno::Errno, unistd::read};

use crate::{named::c_name, text::readable};

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// How many messages are read, and how many bytes of each are kept.
const MOST_MESSAGES: usize = 8;
const LONGEST_MESSAGE: usize = 300;

/// A file system that is being mounted.
#[derive(Debug)]
pub(super) struct Context(OwnedFd);

#[expect(unsafe_code, reason = "fsopen(2) and the calls after it have no wrappers in libc or nix")]
impl Context {
    /// Begins with a type. `ENODEV`: the kernel has no driver for it.
    pub(super) fn open(file_system: &str) -> Result<Context, Errno> {
        let name = c_name(file_system.as_bytes())?;
        // SAFETY: the name is a C string that outlives the call, which returns a new descriptor or
        // -1.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
        descriptor(fd).map(Context)
    }

    /// Sets what is mounted: the path of a block device.
    pub(super) fn source(&self, path: &CStr) -> Result<(), Errno> {
        self.configure(FSCONFIG_SET_STRING, Some(c"source"), Some(path))
    }

    /// Sets an option.
    pub(super) fn option(&self, name: &str, value: Option<&str>) -> Result<(), Errno> {
        let name = c_name(name.as_bytes())?;
        let value: Option<CString> = value.map(|value| c_name(value.as_bytes())).transpose()?;
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        self.configure(command, Some(&name), value.as_deref())
    }

    /// Reads the superblock, or finds the one that is mounted already.
    pub(super) fn create(&self) -> Result<(), Errno> {
        self.configure(FSCONFIG_CMD_CREATE, None, None)
    }

    fn configure(
        &self,
        command: libc::c_uint,
        key: Option<&CStr>,
        value: Option<&CStr>,
    ) -> Result<(), Errno> {
        let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
        let (fd, key, value) = (self.0.as_raw_fd(), pointer(key), pointer(value));
        // SAFETY: both texts are C strings that outlive the call, or absent where the command takes
        // none; the rest are numbers.
        let result = unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, value, 0) };
        Errno::result(result).map(drop)
    }

    /// Returns a detached mount of it with these attributes (`MOUNT_ATTR_…`). It is freed with its
    /// last descriptor.
    pub(super) fn mount(&self, attributes: u64) -> Result<OwnedFd, Errno> {
        let fd = self.0.as_raw_fd();
        let attributes = u32::try_from(attributes).map_err(|_| Errno::EINVAL)?;
        // SAFETY: only numbers are passed; the call returns a new descriptor or -1.
        descriptor(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes) })
    }

    /// What the kernel has said so far, without the mark of its severity.
    pub(super) fn messages(&self) -> Vec<String> {
        let mut messages = Vec::new();
        let mut buffer = vec![0; 4096];
        while messages.len() < MOST_MESSAGES {
            // ENODATA: it has said no more. A message that does not fit is lost.
            let Ok(length) = read(&self.0, &mut buffer) else { break };
            let text = buffer[..length].trim_ascii();
            let text = [&b"e "[..], b"w ", b"i "]
                .iter()
                .find_map(|mark| text.strip_prefix(*mark))
                .unwrap_or(text);
            if !text.is_empty() {
                messages.push(readable(text, LONGEST_MESSAGE));
            }
        }
        messages
    }
}

#[expect(unsafe_code, reason = "system calls return descriptors as numbers")]
fn descriptor(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_it_does_not_like() {
        let context = Context::open("tmpfs").unwrap();
        assert_eq!(context.option("telepathy", None), Err(Errno::EINVAL));
        let messages = context.messages();
        assert!(messages.iter().any(|message| message.contains("telepathy")), "{messages:?}");
        assert!(messages.iter().all(|message| !message.starts_with("e ")), "{messages:?}");
        assert!(context.messages().is_empty());
    }

    #[test]
    fn a_type_without_a_driver_is_told_apart() {
        assert_eq!(Context::open("telepathyfs").unwrap_err(), Errno::ENODEV);
    }

    #[test]
    fn a_mount_has_its_attributes_and_ends_with_its_descriptor() {
        let context = Context::open("tmpfs").unwrap();
        context.option("mode", Some("0700")).unwrap();
        context.create().unwrap();
        let mount = context.mount(libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV).unwrap();
        let flags = nix::sys::statfs::fstatfs(&mount).unwrap().flags();
        assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{flags:?}");
    }
}
