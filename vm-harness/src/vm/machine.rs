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

use clap::ValueEnum as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    Accelerator, Environment, Error, Process, SharedDirectory,
    environment::{CPUS, MACHINE},
};

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
    /// QEMU's machine type.
    pub machine_type: MachineType,
    /// The number of CPUs.
    pub cpus: u32,
    /// Runs QEMU with this user ID, which has access to its run directory and to KVM only.
    pub user: Option<u32>,
    /// The user's QEMU is a rootless VMM, as Kata calls it: its files are below `/run/user/UID`.
    /// The caller has a `/run` of its own, a file system that is mounted for it.
    pub rootless: bool,
    /// A directory of the host that the guest can mount.
    pub share: Option<SharedDirectory>,
    /// Starts QEMU through `ecr-qemu`, as on a node that is set up: `ecr-runtime` uses the monitor
    /// that it adds. Otherwise QEMU makes `qmp.sock`, as where no shim holds that.
    pub wrapped: bool,
    /// Uses the kernel's vhost-vsock (`/dev/vhost-vsock`), as Kata does, in place of
    /// vhost-device-vsock.
    pub native_vsock: bool,
    /// The directory with `vm` and `sbs` of a node (`/run/vc`), on which the wrapper has a record
    /// of QEMU. Otherwise the sandbox has a directory of its own.
    pub run_dir: Option<PathBuf>,
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
            machine_type: MachineType::Q35,
            cpus: 1,
            user: None,
            rootless: false,
            share: None,
            wrapped: true,
            native_vsock: false,
            run_dir: None,
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

/// QEMU's machine type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MachineType {
    /// PCI Express (Kata's default).
    Q35,
    /// PCI, as of the i440FX chipset.
    Pc,
}

impl MachineType {
    /// Returns its name, as on QEMU's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q35 => "q35",
            Self::Pc => "pc",
        }
    }
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

/// No device that is not needed; the memory is that of `-object`.
const MACHINE_OPTIONS: &str =
    "hpet=off,sata=off,smbus=off,vmport=off,i8042=off,usb=off,memory-backend=mem";
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
    /// The monitor for `ecr-runtime`, if QEMU makes it.
    pub qmp: PathBuf,
    /// The file with QEMU's process ID: the directory of the sandbox, for `ecr-qemu`.
    pub pid: PathBuf,
    /// The monitor for the harness.
    pub monitor: PathBuf,
    /// File of the guest's console.
    pub console: PathBuf,
    /// vhost-device-vsock's socket.
    pub vhost: PathBuf,
    /// The guest's context ID, for the kernel's vhost-vsock.
    pub cid: u32,
    /// virtiofsd's socket.
    pub share: PathBuf,
    /// File of QEMU's messages.
    pub stderr: PathBuf,
}

impl MachineFiles {
    /// Returns the files of a VM whose directory is `vm`.
    pub(super) fn new(vm: &Path, kernel: PathBuf, initramfs: PathBuf, cid: u32) -> Self {
        Self {
            kernel,
            initramfs,
            qmp: vm.join("qmp.sock"),
            pid: vm.join("pid"),
            monitor: vm.join("harness.sock"),
            console: vm.join("console.log"),
            vhost: vm.join("vhost.sock"),
            cid,
            share: vm.join("share.sock"),
            stderr: vm.join("qemu.stderr"),
        }
    }
}

impl Machine {
    /// Returns this machine with the machine type and the number of CPUs of `environment`.
    ///
    /// # Errors
    /// QEMU has no such machine type, or the number is none.
    pub(crate) fn in_environment(&self, environment: &Environment) -> Result<Machine, Error> {
        let mut machine = self.clone();
        if let Some(value) = environment.machine_type.clone() {
            let expected = "q35 or pc";
            machine.machine_type = MachineType::from_str(&value, false)
                .map_err(|_| Error::Variable { name: MACHINE, value, expected })?;
        }
        if let Some(value) = environment.cpus.clone() {
            let expected = "a number from 1 to 255";
            machine.cpus = match value.parse::<u8>() {
                Ok(cpus @ 1..) => cpus.into(),
                _ => return Err(Error::Variable { name: CPUS, value, expected }),
            };
        }
        Ok(machine)
    }

    pub(super) fn kernel_command_line(&self) -> String {
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
                &self.cpus.to_string(),
            ])
            .args(["-M", &format!("{},{MACHINE_OPTIONS}", self.machine_type.name())])
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
            .args(["-qmp", &socket(&files.monitor), "-pidfile"])
            .arg(&files.pid)
            .args(&self.devices_before)
            .args(&self.controller)
            .args(self.share.iter().flat_map(|share| share.arguments(&files.share)));
        if !self.wrapped {
            command.args(["-qmp", &socket(&files.qmp)]);
        }
        if self.native_vsock {
            let device = format!("vhost-vsock-pci,id={VSOCK},guest-cid={}", files.cid);
            command.args(["-device", &device]);
            return command;
        }
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
        (qemu, wrapper): (&Path, &Path),
        accelerator: Accelerator,
        name: &str,
        files: &MachineFiles,
        mode: StartMode<'_>,
    ) -> Result<Process, Error> {
        raise_descriptor_limit();
        let missing = || Error::Missing {
            what: qemu.display().to_string(),
            remedy: "run ci/setup, or name QEMU in VM_HARNESS_QEMU",
        };
        let mut command = self.command(qemu, accelerator, name, files, mode);
        if self.wrapped {
            // The wrapper would start the QEMU of the machine in place of one that is not there.
            let qemu = std::fs::canonicalize(qemu).map_err(|_| missing())?;
            let mut through = Command::new(wrapper);
            through.args(command.get_args());
            if self.run_dir.is_none() {
                through.env("ECR_QEMU_PATH", qemu);
            }
            command = through;
        }
        if let Some(user) = self.user {
            // Its only group is the one that may use KVM.
            let group = std::fs::metadata("/dev/kvm").map_or(user, |kvm| kvm.gid());
            command.uid(user).gid(group);
        }
        Process::start("QEMU", command, &files.stderr).map_err(|error| match error {
            Error::Spawn { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                missing()
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
pub(super) fn raise_descriptor_limit() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // On failure the limit stays unchanged.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_of_a_test_is_replaced_by_that_of_the_environment() {
        let with = |machine_type: Option<&str>, cpus: Option<&str>| {
            let mut environment = Environment::from_variables();
            environment.machine_type = machine_type.map(str::to_owned);
            environment.cpus = cpus.map(str::to_owned);
            Machine { cpus: 4, ..Machine::default() }.in_environment(&environment)
        };
        let chosen = |machine: Machine| (machine.machine_type, machine.cpus);
        assert_eq!(chosen(with(None, None).unwrap()), (MachineType::Q35, 4));
        assert_eq!(chosen(with(Some("pc"), Some("2")).unwrap()), (MachineType::Pc, 2));
        let error = with(Some("virt"), None).unwrap_err().to_string();
        assert!(error.contains("VM_HARNESS_MACHINE") && error.contains("virt"), "{error}");
        let error = with(None, Some("0")).unwrap_err().to_string();
        assert!(error.contains("VM_HARNESS_CPUS"), "{error}");
    }
}
