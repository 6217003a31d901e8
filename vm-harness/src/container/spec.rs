//! The OCI specification of a test container, as a Kata shim sends it.
//!
//! It has no pid namespace (the agent adds one), a cgroup path with a parent, `Resources`, no
//! storages, and a root that exists in the guest.

use agent_api::agent::{
    Linux, LinuxCapabilities, LinuxDeviceCgroup, LinuxIDMapping, LinuxNamespace, LinuxResources,
    Mount, Process, Root, Spec, User,
};
use protobuf::MessageField;

use crate::{SharedDirectory, vm::shared_directory::TAG};

/// The default capabilities of Docker and containerd.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The device rules of a container's specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceFilter {
    /// No rules: on cgroup v2 crun then attaches no program, as in a stock Kata guest.
    None,
    /// Rules that deny all devices but the default ones: on cgroup v2 a BPF program.
    Bpf,
}

/// The properties in which the containers of tests differ.
#[derive(Debug, Clone)]
pub struct ContainerOptions {
    /// The device rules.
    pub device_filter: DeviceFilter,
    /// Numbers of block devices that its specification allows it to read and write.
    pub block_devices: Vec<(i64, i64)>,
    /// The command of its first process, which must not end by itself.
    pub command: Vec<String>,
    /// Further mounts.
    pub mounts: Vec<Mount>,
    /// Capabilities beside the default ones.
    pub capabilities: Vec<String>,
    /// Whether it has a user namespace; its root is then the guest's user 100000.
    pub user_namespace: bool,
    /// Whether its root file system is read-only.
    pub read_only_root: bool,
}

impl ContainerOptions {
    /// Returns the options of a container that may mount, and has the guest's programs
    /// (`resize2fs`, `dmsetup`, `mdadm`) in `/usr/sbin`.
    #[must_use]
    pub fn privileged() -> Self {
        let programs = ["/usr", "/lib", "/lib64"];
        Self {
            mounts: programs.map(|path| mount(path, "bind", path, &["rbind", "ro"])).to_vec(),
            capabilities: vec!["CAP_SYS_ADMIN".to_owned()],
            ..Self::default()
        }
    }
}

impl Default for ContainerOptions {
    fn default() -> Self {
        Self {
            device_filter: DeviceFilter::None,
            block_devices: Vec::new(),
            command: ["/bin/sleep", "1000000"].map(str::to_owned).to_vec(),
            mounts: Vec::new(),
            capabilities: Vec::new(),
            user_namespace: false,
            read_only_root: false,
        }
    }
}

/// Returns the specification of container `id`.
pub(super) fn spec(id: &str, options: &ContainerOptions) -> Spec {
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ];
    mounts.extend(options.mounts.iter().cloned());
    let mut resources = resources(options.device_filter);
    resources.Devices.extend(options.block_devices.iter().map(|&(major, minor)| {
        LinuxDeviceCgroup {
            Allow: true,
            Type: "b".to_owned(),
            Major: major,
            Minor: minor,
            Access: "rw".to_owned(),
            ..LinuxDeviceCgroup::default()
        }
    }));
    // A container with a user namespace can mount sysfs only in its own network namespace.
    let namespaces: &[&str] = match options.user_namespace {
        false => &["mount", "ipc", "uts"],
        true => &["mount", "ipc", "uts", "user", "network"],
    };
    let mapping = LinuxIDMapping {
        HostID: 100_000,
        ContainerID: 0,
        Size: 65_536,
        ..LinuxIDMapping::default()
    };
    let mappings = options.user_namespace.then_some(mapping).into_iter().collect::<Vec<_>>();
    Spec {
        Version: "1.0.2".to_owned(),
        Process: MessageField::some(process(&options.command, &options.capabilities)),
        Root: MessageField::some(Root {
            Path: "/ctr/rootfs".to_owned(),
            Readonly: options.read_only_root,
            ..Root::default()
        }),
        Hostname: "container".to_owned(),
        Mounts: mounts,
        Linux: MessageField::some(Linux {
            Resources: MessageField::some(resources),
            CgroupsPath: format!("/pod/{id}"),
            Namespaces: namespaces.iter().map(|kind| namespace(kind)).collect(),
            UIDMappings: mappings.clone(),
            GIDMappings: mappings,
            ..Linux::default()
        }),
        ..Spec::default()
    }
}

/// Returns a process with the default capabilities and `more`.
pub(super) fn process(command: &[String], more: &[String]) -> Process {
    let capabilities =
        || CAPABILITIES.map(str::to_owned).into_iter().chain(more.iter().cloned()).collect();
    Process {
        User: MessageField::some(User::default()),
        Args: command.to_vec(),
        Env: vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "TERM=xterm".to_owned(),
        ],
        Cwd: "/".to_owned(),
        Capabilities: MessageField::some(LinuxCapabilities {
            Bounding: capabilities(),
            Effective: capabilities(),
            Permitted: capabilities(),
            ..LinuxCapabilities::default()
        }),
        ..Process::default()
    }
}

/// Returns the resources with the device rules of `filter`.
pub(super) fn resources(filter: DeviceFilter) -> LinuxResources {
    let deny_all = LinuxDeviceCgroup {
        Allow: false,
        Type: "a".to_owned(),
        Major: -1,
        Minor: -1,
        Access: "rwm".to_owned(),
        ..LinuxDeviceCgroup::default()
    };
    let devices = match filter {
        DeviceFilter::None => Vec::new(),
        DeviceFilter::Bpf => vec![deny_all],
    };
    LinuxResources { Devices: devices, ..LinuxResources::default() }
}

impl SharedDirectory {
    /// Returns a mount of it for a container's specification. With 9p it can be mounted once at a
    /// time.
    pub fn mount(&self, target: &str) -> Mount {
        let (file_system, options) = self.file_system();
        mount(target, file_system, TAG, options)
    }
}

/// Returns a mount of a specification.
pub fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.to_owned(),
        source: source.to_owned(),
        type_: kind.to_owned(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

fn namespace(kind: &str) -> LinuxNamespace {
    LinuxNamespace { Type: kind.to_owned(), ..LinuxNamespace::default() }
}
