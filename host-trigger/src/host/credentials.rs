//! Whether a process could open a file by a path
//! ([`path_resolution(7)`](https://man7.org/linux/man-pages/man7/path_resolution.7.html)). In doubt
//! it could: a process that changes its user or its file's mode may.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::kernel_text;

/// What a process may become without help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Real, effective, saved and file system user.
    users: Vec<u32>,
    /// The same of the group, and the supplementary groups.
    groups: Vec<u32>,
    /// It has a capability in this process's user namespace.
    is_capable: bool,
}

impl Credentials {
    /// Reads those of the process `pid`
    /// ([`status`](https://man7.org/linux/man-pages/man5/proc_pid_status.5.html)).
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = kernel_text::bytes(&path)?;
        let mut credentials = Self::parse(&status)
            .ok_or_else(|| kernel_text::malformed(path, "users or capabilities are missing"))?;
        // In a user namespace of its own it has all capabilities, which are good for nothing here.
        static OWN: OnceLock<Option<PathBuf>> = OnceLock::new();
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        if credentials.is_capable {
            let (own, other) = (OWN.get_or_init(|| namespace("self")), namespace(&pid.to_string()));
            credentials.is_capable = own.is_none() || other.is_none() || *own == other;
        }
        Ok(credentials)
    }

    /// Whether this process may read the descriptors of all others.
    pub(crate) fn own_may_trace() -> bool {
        /// `CAP_SYS_PTRACE`.
        const TRACE: u64 = 1 << 19;
        let status = kernel_text::bytes("/proc/self/status").unwrap_or_default();
        capabilities(&status, b"CapEff:").is_some_and(|effective| effective & TRACE != 0)
    }

    /// Parses `status`; capabilities are those in the process's own user namespace.
    pub(crate) fn parse(status: &[u8]) -> Option<Self> {
        let numbers = |name| {
            let words = field(status, name)?.split(u8::is_ascii_whitespace);
            let words = words.filter(|word| !word.is_empty());
            words.map(kernel_text::number).collect::<Option<Vec<u32>>>()
        };
        let mut groups = numbers(b"Gid:".as_slice())?;
        groups.extend(numbers(b"Groups:")?);
        let users = numbers(b"Uid:")?;
        let capabilities = |name| capabilities(status, name);
        let is_capable = capabilities(b"CapPrm:")? | capabilities(b"CapEff:")? != 0;
        (!users.is_empty()).then_some(Self { users, groups, is_capable })
    }

    pub(crate) fn is_capable(&self) -> bool {
        self.is_capable
    }

    /// The user that it runs as.
    pub(crate) fn user(&self) -> Option<u32> {
        self.users.first().copied()
    }
}

/// Returns the value of the field `name` of `status`.
fn field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name))
}

/// Returns the set of capabilities `name` in `status`.
fn capabilities(status: &[u8], name: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(field(status, name)?.trim_ascii()).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// Who may use a file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Permissions {
    owner: u32,
    group: u32,
    mode: u32,
    /// An access control list names further users.
    has_list: bool,
}

impl Permissions {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            owner: metadata.uid(),
            group: metadata.gid(),
            mode: metadata.permissions().mode(),
            has_list: has_access_list(path),
        })
    }

    /// Whether a process may have one of the rights `bits` (4 read, 2 write, 1 search), or may give
    /// itself that right.
    fn allow(&self, process: &Credentials, bits: u32) -> bool {
        process.is_capable
            || self.has_list
            || process.users.contains(&self.owner)
            || self.mode & bits != 0
            || (self.mode >> 3) & bits != 0 && process.groups.contains(&self.group)
    }
}

/// Who could open the file at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    file: Permissions,
    directories: Vec<Permissions>,
}

impl Access {
    /// Returns who could open the file at `path`, which has no link in it; `None` if nothing is
    /// there.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let file = Permissions::of(path).ok()?;
        // Another name of a file has other directories.
        let has_one_name = fs::metadata(path).is_ok_and(|metadata| metadata.nlink() <= 1);
        let above = path.ancestors().skip(1).filter(|_| has_one_name);
        let directories = above.filter_map(|directory| Permissions::of(directory).ok()).collect();
        Some(Self { file, directories })
    }

    /// Whether the process could open the file. It counts as able to if it has another mount
    /// namespace and the mode of the file allows it, because it may have another path to it there.
    pub(crate) fn allows(&self, process: &Credentials, shares_mounts: bool) -> bool {
        self.file.allow(process, 0o6)
            && (!shares_mounts || self.directories.iter().all(|above| above.allow(process, 0o1)))
    }
}

/// Whether an access control list ([`acl(5)`](https://man7.org/linux/man-pages/man5/acl.5.html))
/// may grant more than the mode does.
#[expect(unsafe_code, reason = "neither std nor nix wraps getxattr")]
fn has_access_list(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return true };
    let name = c"system.posix_acl_access";
    // SAFETY: both strings end with a NUL, and with the size 0 nothing is written to the address.
    let size = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    let none = [libc::ENODATA, libc::EOPNOTSUPP];
    size >= 0 || !io::Error::last_os_error().raw_os_error().is_some_and(|e| none.contains(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(user: u32, groups: &[u32]) -> Credentials {
        Credentials { users: vec![user], groups: groups.to_vec(), is_capable: false }
    }

    #[test]
    fn users_groups_and_capabilities_are_read() {
        let status = |capabilities: &str| {
            format!(
                "Name:\t\\xff\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \n\
                 CapPrm:\t{capabilities}\nCapEff:\t0000000000000000\n"
            )
        };
        let read = |text: String| Credentials::parse(text.as_bytes());
        let expected = Credentials {
            users: vec![1, 2, 3, 4],
            groups: vec![5, 6, 7, 8, 9, 10],
            is_capable: false,
        };
        assert_eq!(read(status("0000000000000000")), Some(expected.clone()));
        assert!(read(status("0000000000000008")).unwrap().is_capable);
        assert_eq!(read(status("none")), None);
        assert_eq!(read("Uid:\t0\n".to_owned()), None);
        assert!(Credentials::of(std::process::id().cast_signed()).is_ok());
    }

    #[test]
    fn a_file_of_root_is_closed_to_others() {
        let file = Permissions { owner: 0, group: 6, mode: 0o100_660, has_list: false };
        assert!(file.allow(&process(0, &[]), 0o6) && file.allow(&process(9, &[6]), 0o6));
        assert!(!file.allow(&process(9, &[9]), 0o6));
        let listed = Permissions { has_list: true, ..file.clone() };
        assert!(listed.allow(&process(9, &[9]), 0o6));
        let capable = Credentials { is_capable: true, ..process(9, &[9]) };
        assert!(file.allow(&capable, 0o6));
    }

    #[test]
    fn a_closed_directory_protects_a_file_that_has_no_other_name() {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let path = directory.path().join("image");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let stranger = process(65534, &[65534]);
        let allows = |shares_mounts| Access::of(&path).unwrap().allows(&stranger, shares_mounts);
        assert_eq!((allows(true), allows(false)), (false, true));
        fs::hard_link(&path, directory.path().join("other")).unwrap();
        assert!(allows(true));
    }
}
