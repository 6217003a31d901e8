//! QEMU's command line for a guest that boots in two seconds, and its process.
//!
//! Direct boot of an uncompressed kernel (PVH), no firmware beyond qboot, no device that isn't
//! needed, and a kernel command line that leaves out what costs time under emulation. Everything
//! that a test varies is in [`Machine`].

use std::{
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{Accelerator, Error, Process, SharedDirectory};

/// What differs between two guests of a test run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Cgroup hierarchy that the agent finds.
    pub cgroup: Cgroup,
    /// `scsi_mod.scan`.
    pub scan: Scan,
    /// Further words of the kernel command line.
    pub kernel_parameters: Vec<String>,
    /// QEMU's arguments for the virtio-scsi controller; empty for a guest without one.
    pub controller: Vec<String>,
    /// Further arguments of QEMU that come before the controller's (so that they get lower PCI
    /// addresses).
    pub devices_before: Vec<String>,
    /// Memory in MiB.
    pub memory: u32,
    /// Runs QEMU as this user, by number: no right to anything but its run directory and KVM.
    pub user: Option<u32>,
    /// A directory of the host for the guest.
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
    /// One tree for each controller; devices have an allow-list.
    V1,
    /// The unified tree; devices are filtered by BPF programs, or not at all.
    V2,
}

/// How the guest's kernel finds SCSI disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scan {
    /// Only when told to (Kata's Go runtime).
    None,
    /// By itself, also when a disk is hot-plugged (Kata's Rust runtime).
    Async,
}

/// How a guest comes to run.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// From the kernel's first instruction.
    Boot,
    /// The same with a vsock device that can be unplugged again: QEMU saves no guest that has one.
    BootToSave,
    /// Where a [`Start::BootToSave`] was saved, from that file; the vsock device is plugged when it
    /// runs.
    Restore(&'a Path),
}

/// The PCI slot of a vsock device that comes and goes.
pub(crate) const VSOCK_PORT: &str = "vsock-port";
/// The vsock device's id, and its socket's.
pub(crate) const VSOCK: &str = "vsock";

/// The files that QEMU is started with.
#[derive(Debug)]
pub struct Files {
    /// Uncompressed kernel.
    pub kernel: PathBuf,
    /// Uncompressed cpio archive.
    pub initramfs: PathBuf,
    /// The monitor for `ecr-runtime`.
    pub qmp: PathBuf,
    /// The monitor for the harness.
    pub monitor: PathBuf,
    /// Where the guest's console goes.
    pub console: PathBuf,
    /// vhost-device-vsock's socket.
    pub vhost: PathBuf,
    /// virtiofsd's socket.
    pub share: PathBuf,
    /// Where QEMU's own messages go.
    pub stderr: PathBuf,
}

impl Machine {
    fn kernel_command_line(&self) -> String {
        // loglevel=5 shows warnings (a splat begins with one) and leaves the boot's chatter out.
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

    /// The whole command.
    pub fn command(
        &self,
        qemu: &Path,
        accelerator: Accelerator,
        name: &str,
        files: &Files,
        start: Start<'_>,
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
            // Shared memory: without it the vsock device is there and never connects, without a
            // word.
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
        match start {
            Start::Boot => command.args(["-chardev", &socket, "-device", &device]),
            Start::BootToSave => {
                let device = format!("{device},bus={VSOCK_PORT}");
                command.args(["-device", &port, "-chardev", &socket, "-device", &device])
            }
            // By a program: QEMU reads files by itself since 8.2 only.
            Start::Restore(file) => command.args([
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
    /// There is no QEMU, or it cannot be started.
    pub fn start(
        &self,
        qemu: &Path,
        accelerator: Accelerator,
        name: &str,
        files: &Files,
        start: Start<'_>,
    ) -> Result<Process, Error> {
        raise_descriptor_limit();
        let mut command = self.command(qemu, accelerator, name, files, start);
        if let Some(user) = self.user {
            // Its group is the one that may use KVM: it is in no other.
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

/// `path` as one word of a shell's command.
fn shell_word(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// QEMU inherits the limit, and needs two descriptors and more for each volume: the usual 1,024 are
/// few for 256 of them.
fn raise_descriptor_limit() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // At the worst it stays as it was.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}
