//! What this version cannot serve, and what to use instead: one variant per case.

use crate::text::{quoted, shown};

/// What this version cannot serve, and what to use instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unsupported {
    /// A file system that takes neither a node nor a file.
    #[error("{} is on {file_system}, which takes no file: choose a path below /dev", quoted(path))]
    FileSystem {
        /// In the container.
        path: String,
        /// Its type.
        file_system: String,
    },
    /// A mount there would appear in other mount namespaces, too.
    #[error(
        "a mount at {} would propagate to other mount namespaces (shared propagation): choose a path below /dev",
        quoted(path)
    )]
    Shared {
        /// In the container.
        path: String,
    },
    /// Nodes that were removed from a container without a device filter are still referred to.
    #[error(
        "container {container} still refers to too many volumes that were unplugged: give it a device filter, or restart it"
    )]
    Referenced {
        /// Its id.
        container: String,
    },
    /// The container has no such user or group.
    #[error(
        "owner {uid}:{gid} is not mapped in the container's user namespace: choose one that is"
    )]
    Owner {
        /// As requested.
        uid: u32,
        /// As requested.
        gid: u32,
    },
    /// The container has no such group.
    #[error("group {gid} is not mapped in the container's user namespace: choose one that is")]
    Group {
        /// As requested.
        gid: u32,
    },
    /// Nodes there cannot be opened, although the mount's flags did not show it.
    #[error(
        "{} is on a mount where no device node can be opened (nodev): choose a path below /dev",
        quoted(path)
    )]
    NoDev {
        /// In the container.
        path: String,
    },
    /// The parent leads through `/proc/PID/root` or the like.
    #[error(
        "a parent of {} is a link that is not safe to follow: name the real directory",
        quoted(path)
    )]
    MagicLink {
        /// In the container.
        path: String,
    },
    /// Its maps would have to be shared, and what the program keeps in them is not known.
    #[error("device program {program} uses maps, which this version does not support")]
    BpfMaps {
        /// Id of the program.
        program: u32,
    },
    /// The kernel withholds the instructions.
    #[error(
        "the kernel does not show device program {program} (CAP_BPF and CAP_PERFMON, kernel.kptr_restrict)"
    )]
    BpfUnreadable {
        /// Id of the program.
        program: u32,
    },
    /// An instruction that runtimes do not write: a helper call, a stack access.
    #[error(
        "instruction {index} (code {code:#04x}) of device program {program} is not one that this version understands"
    )]
    BpfInstruction {
        /// Id of the program.
        program: u32,
        /// Position of the instruction.
        index: usize,
        /// Its opcode.
        code: u8,
    },
    /// Attached by a link. Only the link's owner can replace the program.
    #[error("device program {program} is attached by a bpf_link, which only its owner can change")]
    BpfLink {
        /// Id of the program.
        program: u32,
    },
    /// Constants are hidden, or would be hidden in a program that is loaded.
    #[error(
        "net.core.bpf_jit_harden hides the instructions of device programs: set it to 1 or 0 and restart the container"
    )]
    BpfBlinded,
    /// The kernel completed the program for this machine, and would do so again with each load.
    #[error("the kernel of this machine changes device program {program} when it is loaded again")]
    BpfRewritten {
        /// Id of the program.
        program: u32,
    },
    /// Without this flag the kernel does not check that the program it replaces is the one that was
    /// read.
    #[error(
        "the device program of cgroup {} is attached without BPF_F_ALLOW_MULTI and cannot be replaced safely",
        shown(cgroup)
    )]
    BpfExclusive {
        /// Below the root of the hierarchy.
        cgroup: String,
    },
    /// A wider program there would be wider for other containers, too.
    #[error(
        "device program {program} of cgroup {} refuses disks, also for other containers than this one",
        shown(cgroup)
    )]
    BpfShared {
        /// Id of the program.
        program: u32,
        /// Below the root of the hierarchy.
        cgroup: String,
    },
    /// A capability is missing.
    #[error(
        "the agent has no right to bpf({call}): CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN (before Linux 5.11 RLIMIT_MEMLOCK, too)"
    )]
    BpfDenied {
        /// The command.
        call: &'static str,
    },
    /// Rules of the root group belong to the whole guest.
    #[error("the container is in the root cgroup, whose device rules are the guest's own")]
    RootCgroup,
    /// The agent has mounted none.
    #[error("no cgroup hierarchy with a devices controller is mounted below /sys/fs/cgroup")]
    NoCgroup,
    /// The guest's kernel cannot mount such a file system.
    #[error("the guest's kernel has no driver for {file_system}: see docs/guest-kernel.md")]
    NoDriver {
        /// Its type.
        file_system: &'static str,
    },
    /// The container has a user namespace, whose ids a mount has to have.
    #[error(
        "{file_system} has no idmapped mounts in the guest's kernel, and container {container} has a user namespace: use ext4, xfs or btrfs, and Linux 5.19 or newer"
    )]
    NotIdmapped {
        /// Its type.
        file_system: &'static str,
        /// The container's id.
        container: String,
    },
    /// The guest's kernel is older than this operation needs.
    #[error("the guest's kernel has no {call}: use Linux {since} or newer")]
    Kernel {
        /// The system call.
        call: &'static str,
        /// The version that has it.
        since: &'static str,
    },
}
