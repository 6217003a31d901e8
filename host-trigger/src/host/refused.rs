//! Finds why the kernel did not open a source: its attributes
//! ([`statx(2)`](https://man7.org/linux/man-pages/man2/statx.2.html)), its file system
//! ([`statfs(2)`](https://man7.org/linux/man-pages/man2/statfs.2.html)) and what this process may
//! do. All is asked of the `O_PATH` descriptor, which needs no right to the file.

use std::{fs, fs::File, io, os::fd::AsRawFd};

use nix::sys::{
    statfs::{FUSE_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, fstatfs},
    statvfs::{FsFlags, fstatvfs},
};

use crate::error::Refusal;

/// `CAP_DAC_OVERRIDE`: with it, permission bits do not apply.
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
/// `linux/magic.h`; nix does not have it.
const SMB2_MAGIC_NUMBER: FsType = FsType(0xfe53_4d42);
/// Security modules whose policy can deny an open to root.
const MODULES: [&str; 5] = ["selinux", "apparmor", "smack", "tomoyo", "bpf"];

/// Returns why an open of `file`, which is an `O_PATH` descriptor, failed with `errno`.
pub(super) fn cause(file: &File, is_block: bool, write: bool, errno: i32) -> Refusal {
    let flags = fstatvfs(file).map(|file_system| file_system.flags()).unwrap_or(FsFlags::empty());
    if errno == libc::EROFS {
        return Refusal::ReadOnlyMount;
    }
    if is_block && flags.contains(FsFlags::ST_NODEV) {
        return Refusal::Nodev;
    }
    if !is_block
        && write
        && errno == libc::EPERM
        && let Some(protection) = protection(file)
    {
        return protection;
    }
    let status = fs::read("/proc/self/status").unwrap_or_default();
    if !has_capability(&status, CAP_DAC_OVERRIDE) {
        return Refusal::NotRoot;
    }
    if !is_initial(&fs::read("/proc/self/uid_map").unwrap_or_default()) {
        return Refusal::UserNamespace;
    }
    let file_system = fstatfs(file).ok().and_then(|found| server(found.filesystem_type()));
    if let Some(file_system) = file_system.filter(|_| !is_block) {
        return Refusal::Server { file_system };
    }
    // Modules deny with EACCES; the cgroup and its programs with EPERM.
    match fs::read("/sys/kernel/security/lsm") {
        _ if is_block && errno == libc::EPERM => Refusal::DeviceCgroup,
        Ok(active) => modules(&active),
        Err(_) => Refusal::Unknown,
    }
}

/// Returns what protects the file from everybody.
#[expect(unsafe_code, reason = "nix has no wrapper for statx")]
fn protection(file: &File) -> Option<Refusal> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string, and the buffer is valid for the call, which fills it.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, 0, found.as_mut_ptr())
    };
    if result != 0 {
        return None;
    }
    // SAFETY: all bytes were zero, which is a valid value, and the call has filled it.
    let attributes = unsafe { found.assume_init() }.stx_attributes;
    let has = |attribute: libc::c_int| attributes & u64::from(attribute.unsigned_abs()) != 0;
    match () {
        () if has(libc::STATX_ATTR_IMMUTABLE) => Some(Refusal::Immutable),
        () if has(libc::STATX_ATTR_APPEND) => Some(Refusal::AppendOnly),
        () if has(libc::STATX_ATTR_VERITY) => Some(Refusal::Verity),
        () => None,
    }
}

/// Returns the name of a file system whose server or daemon may deny an open to root.
fn server(kind: FsType) -> Option<&'static str> {
    match kind {
        NFS_SUPER_MAGIC => Some("the NFS server"),
        SMB2_MAGIC_NUMBER => Some("the SMB server"),
        FUSE_SUPER_MAGIC => Some("the FUSE daemon"),
        _ => None,
    }
}

/// Whether the text of `/proc/self/status` has the effective capability.
fn has_capability(status: &[u8], capability: u64) -> bool {
    let mut lines = status.split(|&byte| byte == b'\n');
    let effective = lines.find_map(|line| line.strip_prefix(b"CapEff:"));
    let effective = effective.and_then(|set| str::from_utf8(set).ok());
    effective
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & capability != 0)
}

/// Whether the text of `/proc/self/uid_map` is that of the initial user namespace.
fn is_initial(map: &[u8]) -> bool {
    let mut words = map.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    [&b"0"[..], b"0", b"4294967295"].into_iter().all(|word| words.next() == Some(word))
}

/// Returns the modules of `active`, the text of `/sys/kernel/security/lsm`, that have a policy.
fn modules(active: &[u8]) -> Refusal {
    let active = String::from_utf8_lossy(active.trim_ascii());
    let names: Vec<_> = active.split(',').filter(|name| MODULES.contains(name)).collect();
    match &names[..] {
        [] => Refusal::Unknown,
        _ => Refusal::SecurityModule { names: names.join(", ") },
    }
}

/// Whether an open failed for a reason that [`cause`] can find.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EROFS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_attributes_has_no_protection() {
        assert_eq!(protection(&tempfile::tempfile().unwrap()), None);
    }

    #[test]
    fn capabilities_are_the_effective_ones() {
        let status = b"Name:\tx\nCapPrm:\t0000000000000002\nCapEff:\t0000000000000001\n";
        assert!(!has_capability(status, CAP_DAC_OVERRIDE));
        assert!(has_capability(b"CapEff:\t000001ffffffffff\n", CAP_DAC_OVERRIDE));
        assert!(!has_capability(b"", CAP_DAC_OVERRIDE));
    }

    #[test]
    fn only_the_initial_user_namespace_maps_every_user_to_itself() {
        assert!(is_initial(b"         0          0 4294967295\n"));
        assert!(!is_initial(b"         0     100000      65536\n"));
        assert!(!is_initial(b""));
    }

    #[test]
    fn only_modules_with_a_policy_are_named() {
        let named = |active: &[u8]| modules(active).to_string();
        assert!(named(b"lockdown,capability,yama,apparmor,bpf\n").contains("apparmor, bpf"));
        assert_eq!(modules(b"lockdown,capability,yama"), Refusal::Unknown);
    }
}
