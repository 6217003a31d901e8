//! QEMU's command line for a guest that boots in two seconds, and its process.
//!
//! Direct boot of an uncompressed kernel (PVH), no firmware except qboot, no device that is not
//! needed, and a kernel command line without what costs time under emulation. Everything that a
//! test varies is in [`Machine`].

use std::{
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{Accelerator, Error, Process, SharedDirectory};

/// The properties in which the guests of tests differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Cgroup hierarchy of the guest.
    pub cgroup: Cgroup,
    /// `scsi_mod.scan`.
    pub scan: Scan,
    /// Further parameters of the kernel command line.
    pub kernel_parameters: Vec<String>,
    /// QEMU's arguments for the virtio-scsi controller; empty for a guest without one.
    pub controller: Vec<String>,
    /// Further arguments of QEMU that come before the controller's (so that they get lower PCI
    /// addresses).
    pub devices_before: Vec<String>,
    /// Memory in MiB.
    pub memory: u32,
    /// Runs QEMU with this user ID, which has access to its run directory and to KVM only.
    pub user: Option<u32>,
    /// A directory of the host that the guest can mount.
    pub share: Option<SharedDirectory>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cgroup: Cgroup::V2,
            scan: Scan::None,
            kernel_parameters: Vec::new(),
            controller: ["-device", "virtio-scsi-pci,id=scsi0"].map(str::to_owned).to_vec(),
            devices_before: Vec::new(),
            memory: 256,
            user: None,
            share: None,
        }
    }
}

/// The cgroup hierarchy of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cgroup {
    /// One hierarchy for each controller; the devices controller has an allow-list.
    V1,
    /// The unified hierarchy; devices are filtered by BPF programs, or not at all.
    V2,
}

/// How the guest's kernel finds SCSI disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scan {
    /// Only on request (Kata's Go runtime).
    None,
    /// By itself, also when a disk is hot-plugged (Kata's Rust runtime).
    Async,
}

/// How QEMU starts the guest.
#[derive(Debug, Clone, Copy)]
pub enum StartMode<'a> {
    /// Boot the kernel.
    Boot,
    /// Boot the kernel, with a vsock device that can be unplugged: QEMU cannot save a guest with a
    /// vhost-user device.
    BootToSave,
    /// Restore a guest that was started with [`StartMode::BootToSave`] from this file; the vsock
    /// device is plugged when it runs.
    Restore(&'a Path),
}

/// The PCIe root port of a vsock device that is plugged and unplugged.
pub(crate) const VSOCK_PORT: &str = "vsock-port";
/// The ID of the vsock device and of its socket.
pub(crate) const VSOCK: &str = "vsock";

/// The files that QEMU is started with.
#[derive(Debug)]
pub struct MachineFiles {
    /// Uncompressed kernel.
    pub kernel: PathBuf,
    /// Uncompressed cpio archive.
    pub initramfs: PathBuf,
    /// The monitor for `ecr-runtime`.
    pub qmp: PathBuf,
    /// The monitor for the harness.
    pub monitor: PathBuf,
    /// File of the guest's console.
    pub console: PathBuf,
    /// vhost-device-vsock's socket.
    pub vhost: PathBuf,
    /// virtiofsd's socket.
    pub share: PathBuf,
    /// File of QEMU's messages.
    pub stderr: PathBuf,
}

impl Machine {
    fn kernel_command_line(&self) -> String {
        // loglevel=5 shows warnings (a splat begins with one) and hides the other boot messages.
        let mut words = vec![
            "console=ttyS0 loglevel=5 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check lpj=9000000 audit=0",
            "random.trust_cpu=on init_on_alloc=0 apparmor=0 lsm= cryptomgr.notests rodata=off",
            "agent.server_addr=vsock://-1:1024",
        ];
        if self.scan == Scan::None {
            words.push("scsi_mod.scan=none");
        }
        if self.cgroup == Cgroup::V2 {
            words.push("cgroup_no_v1=all");
        }
        words.extend(self.kernel_parameters.iter().map(String::as_str));
        words.join(" ")
    }

    /// Returns the whole command.
    pub fn command(
        &self,
        qemu: &Path,
        accelerator: Accelerator,
        name: &str,
        files: &MachineFiles,
        mode: StartMode<'_>,
    ) -> Command {
        let mut command = Command::new(qemu);
        let memory = self.memory;
        let socket = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        command
            .args([
                "-name",
                name,
                "-accel",
                accelerator.option(),
                "-cpu",
                accelerator.cpu(),
                "-smp",
                "1",
            ])
            .args([
                "-M",
                "q35,hpet=off,sata=off,smbus=off,vmport=off,i8042=off,usb=off,memory-backend=mem",
            ])
            .args(["-m", &memory.to_string()])
            // Shared memory: without it the vsock device exists and never connects, and no message
            // says so.
            .args(["-object", &format!("memory-backend-memfd,id=mem,size={memory}M,share=on")])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
                "-bios",
                "qboot.rom",
            ])
            .arg("-serial")
            .arg(format!("file:{}", files.console.display()))
            .arg("-kernel")
            .arg(&files.kernel)
            .arg("-initrd")
            .arg(&files.initramfs)
            .args(["-append", &self.kernel_command_line()])
            .args(["-qmp", &socket(&files.qmp), "-qmp", &socket(&files.monitor)])
            .args(&self.devices_before)
            .args(&self.controller)
            .args(self.share.iter().flat_map(|share| share.arguments(&files.share)));
        let port = format!("pcie-root-port,id={VSOCK_PORT},chassis=1,slot=1");
        let socket = format!("socket,id={VSOCK},path={}", files.vhost.display());
        let device = format!("vhost-user-vsock-pci,id={VSOCK},chardev={VSOCK}");
        match mode {
            StartMode::Boot => command.args(["-chardev", &socket, "-device", &device]),
            StartMode::BootToSave => {
                let device = format!("{device},bus={VSOCK_PORT}");
                command.args(["-device", &port, "-chardev", &socket, "-device", &device])
            }
            // By a program, because QEMU reads files itself only since 8.2.
            StartMode::Restore(file) => command.args([
                "-device",
                &port,
                "-incoming",
                &format!("exec:cat {}", shell_word(file)),
            ]),
        };
        command
    }

    /// Starts QEMU.
    ///
    /// # Errors
    /// QEMU is not installed, or cannot be started.
    pub fn start(
        &self,
        qemu: &Path,
        accelerator: Accelerator,
        name: &str,
        files: &MachineFiles,
        mode: StartMode<'_>,
    ) -> Result<Process, Error> {
        raise_descriptor_limit();
        let mut command = self.command(qemu, accelerator, name, files, mode);
        if let Some(user) = self.user {
            // Its only group is the one that may use KVM.
            let group = std::fs::metadata("/dev/kvm").map_or(user, |kvm| kvm.gid());
            command.uid(user).gid(group);
        }
        Process::start("QEMU", command, &files.stderr).map_err(|error| match error {
            Error::Spawn { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Error::Missing {
                    what: qemu.display().to_string(),
                    remedy: "run ci/setup, or name QEMU in VM_HARNESS_QEMU",
                }
            }
            other => other,
        })
    }
}

/// Quotes `path` for a shell.
fn shell_word(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Raises the soft limit of open files to the hard limit. QEMU inherits it, and needs at least two
/// descriptors for each volume: the usual 1,024 are not enough for 256 volumes.
fn raise_descriptor_limit() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // On failure the limit stays unchanged.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}
