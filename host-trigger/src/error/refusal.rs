//! Why the kernel does not open a source. One errno, such as `EPERM`, has many causes, and each has
//! a remedy of its own.

use std::fmt;

/// The cause that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The attribute `i` of `chattr(1)`.
    Immutable,
    /// The attribute `a` of `chattr(1)`.
    AppendOnly,
    /// fs-verity: the content is sealed.
    Verity,
    /// The file system is mounted read-only here.
    ReadOnlyMount,
    /// A device node on a file system that is mounted `nodev`.
    Nodev,
    /// The file is on a file system whose server or daemon decides.
    Server {
        /// The type of the file system.
        file_system: &'static str,
    },
    /// This process has not the capabilities of root.
    NotRoot,
    /// This process is root of a user namespace only.
    UserNamespace,
    /// The device cgroup of this process does not list the device.
    DeviceCgroup,
    /// A security module that is active.
    SecurityModule {
        /// Their names.
        names: String,
    },
    /// None that can be found.
    Unknown,
}

impl Refusal {
    /// Whether the source is protected from everybody, root included. It can still be read.
    pub(crate) fn is_protection(&self) -> bool {
        matches!(self, Self::Immutable | Self::AppendOnly | Self::Verity | Self::ReadOnlyMount)
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Immutable => "remove the attribute with `chattr -i`, or plug it with --read-only",
            Self::AppendOnly => {
                "remove the attribute with `chattr -a`, or plug it with --read-only"
            }
            Self::Verity => "plug it with --read-only, or make a copy of it",
            Self::ReadOnlyMount => {
                "plug it with --read-only, or remount the file system read-write"
            }
            Self::Nodev => "name its node in /dev",
            Self::Server { .. } => {
                "let the server or the daemon of the file system allow root (no_root_squash, \
                 allow_root)"
            }
            Self::NotRoot => "run it as root",
            Self::UserNamespace => "run it as root of the host, in no user namespace",
            Self::DeviceCgroup => {
                "run it in a device cgroup that allows the device, such as a shell of the node"
            }
            Self::SecurityModule { .. } => {
                "let its policy allow the access; the audit log of the host has the denial"
            }
            Self::Unknown => "run it as root in a shell of the node",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Immutable => f.write_str("it has the attribute immutable (`chattr +i`)"),
            Self::AppendOnly => f.write_str("it has the attribute append-only (`chattr +a`)"),
            Self::Verity => f.write_str("fs-verity seals it"),
            Self::ReadOnlyMount => f.write_str("its file system is mounted read-only"),
            Self::Nodev => f.write_str("its node is on a file system that is mounted nodev"),
            Self::Server { file_system } => write!(f, "{file_system} does not permit it"),
            Self::NotRoot => f.write_str("this process has not the capabilities of root"),
            Self::UserNamespace => {
                f.write_str("this process is root of a user namespace, not of the host")
            }
            Self::DeviceCgroup => {
                f.write_str("the device cgroup of this process does not allow it")
            }
            Self::SecurityModule { names } => {
                write!(f, "a security module does not permit it ({names} is active)")
            }
            Self::Unknown => f.write_str("the kernel does not permit it"),
        }
    }
}
