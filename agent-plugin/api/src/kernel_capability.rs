//! What the plugin needs of the guest's kernel. The guest finds by trying what is missing and
//! reports names ([`KernelState`](crate::block_volume::KernelState)); this table says what each is
//! for, to the host and in `docs/guest-kernel.md`.

/// What happens without a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Without {
    /// No volume can be attached.
    NoVolumes,
    /// Some containers get no volume, or less protection, or an option does not work.
    Less,
    /// Everything works, some of it slower.
    Slower,
}

/// One capability of the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelCapability {
    /// Its stable name.
    pub name: &'static str,
    /// The kernel's options, its version or its settings.
    pub option: &'static str,
    /// How much is lost without it.
    pub without: Without,
    /// What is lost without it.
    pub lost: &'static str,
}

impl KernelCapability {
    const fn new(
        name: &'static str,
        option: &'static str,
        without: Without,
        lost: &'static str,
    ) -> Self {
        Self { name, option, without, lost }
    }

    /// Returns the capability of this name; `None` for one of a later version.
    pub fn named(name: &str) -> Option<&'static Self> {
        KERNEL_CAPABILITIES.iter().find(|capability| capability.name == name)
    }
}

/// Every capability, in the order in which an attach needs them.
pub const KERNEL_CAPABILITIES: &[KernelCapability] = &[
    KernelCapability::new(
        "pidfd_open",
        "Linux 5.3 or newer",
        Without::NoVolumes,
        "no container can be entered",
    ),
    KernelCapability::new(
        "openat2",
        "Linux 5.6 or newer",
        Without::NoVolumes,
        "no device path can be resolved",
    ),
    KernelCapability::new("uevents", "CONFIG_NET", Without::NoVolumes, "no new disk is noticed"),
    KernelCapability::new(
        "virtio_scsi",
        "CONFIG_SCSI_VIRTIO",
        Without::NoVolumes,
        "the controller has no driver",
    ),
    KernelCapability::new(
        "sd",
        "CONFIG_BLK_DEV_SD",
        Without::NoVolumes,
        "a SCSI device does not become a disk",
    ),
    KernelCapability::new(
        "tmpfs",
        "CONFIG_TMPFS",
        Without::NoVolumes,
        "a container has no /dev of its own, and a bind node cannot be made",
    ),
    KernelCapability::new(
        "device_cgroup",
        "cgroup v2, or CONFIG_CGROUP_DEVICE and cgroup v1, mounted in the guest",
        Without::NoVolumes,
        "a container's device filter cannot be found",
    ),
    KernelCapability::new(
        "mount_setattr",
        "Linux 5.12 or newer",
        Without::Less,
        "no mounts and no bind nodes: a container with a user namespace gets no volume, nor does a \
         path outside of a container's own tmpfs",
    ),
    KernelCapability::new(
        "user_namespaces",
        "CONFIG_USER_NS, and user.max_user_namespaces above 0",
        Without::Less,
        "a container with a user namespace cannot be started",
    ),
    KernelCapability::new(
        "device_programs",
        "CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL, and CAP_SYS_ADMIN for the agent (cgroup v2 only)",
        Without::Less,
        "no device filters: with CAP_MKNOD a container can open the volumes of others",
    ),
    KernelCapability::new(
        "readable_device_programs",
        "net.core.bpf_jit_harden below 2 (cgroup v2 only)",
        Without::Less,
        "a container with a device program gets no volume",
    ),
    KernelCapability::new(
        "inotify",
        "CONFIG_INOTIFY_USER",
        Without::Less,
        "hot-unplug --wait fails while a process holds the disk; after 64 volumes a container \
         without a device filter gets no more",
    ),
    KernelCapability::new(
        "kcmp",
        "CONFIG_KCMP",
        Without::Slower,
        "a search for holders looks at each thread of a process",
    ),
    KernelCapability::new(
        "proc_children",
        "CONFIG_PROC_CHILDREN",
        Without::Slower,
        "a search for holders looks at kernel threads, too",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lead_to_their_capability() {
        for capability in KERNEL_CAPABILITIES {
            assert_eq!(KernelCapability::named(capability.name), Some(capability));
        }
        assert_eq!(KernelCapability::named("telepathy"), None);
    }
}
