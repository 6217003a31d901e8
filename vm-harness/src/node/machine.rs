//! QEMU's command line for a node.

use std::{path::Path, process::Command};

use super::{
    image::{KATA, NodeImage, PROGRAMS},
    report::PORT,
};
use crate::Accelerator;

/// Memory in MiB: Debian, and a VM of the harness or of Kata (2 GiB by its configuration).
const MEMORY: (u32, u32) = (2048, 6144);

/// The files of a node's QEMU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) console: &'a Path,
    /// The socket to which QEMU connects for the report.
    pub(super) report: &'a Path,
}

fn kernel_command_line(with_kata: bool) -> String {
    let mut words = vec![
        "console=ttyS0 loglevel=5 panic=-1 mitigations=off no_timer_check audit=0 apparmor=0"
            .into(),
        "systemd.wants=vm-harness-node.service systemd.mask=e2scrub_reap.service".into(),
        "systemd.mask=serial-getty@ttyS0.service systemd.mask=getty-static.service".into(),
        "systemd.mask=apt-daily.timer systemd.mask=apt-daily-upgrade.timer".into(),
    ];
    let disks = [PROGRAMS].into_iter().chain(with_kata.then_some(KATA));
    words
        .extend(disks.map(|(label, at)| format!("systemd.mount-extra=LABEL={label}:{at}:ext4:rw")));
    words.join(" ")
}

/// Returns the command.
pub(super) fn command(
    qemu: &Path,
    accelerator: Accelerator,
    image: &NodeImage,
    files: Files<'_>,
) -> Command {
    // The processor of a node that is emulated has what programs of today need, and no more: each
    // instruction of a sandbox in it is translated twice. The buffer is for the code of both.
    let (accel, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg,thread=multi,tb-size=1024", "Nehalem,-vmx"),
    };
    let with_kata = image.disks.len() > 2;
    let memory = if with_kata { MEMORY.1 } else { MEMORY.0 };
    let mut command = Command::new(qemu);
    command
        .args(["-name", "node", "-accel", accel, "-cpu", cpu, "-smp", "2"])
        .args(["-M", "q35,hpet=off,sata=off,smbus=off,vmport=off,i8042=off,usb=off"])
        .args(["-m", &memory.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-bios", "qboot.rom", "-device", "virtio-rng-pci", "-serial"])
        .arg(format!("file:{}", files.console.display()))
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        .args(["-append", &kernel_command_line(with_kata)])
        .args(["-device", "virtio-serial-pci", "-chardev"])
        .arg(format!("socket,id=report,path={}", files.report.display()))
        .args(["-device", &format!("virtserialport,chardev=report,name={PORT}")]);
    for (index, disk) in image.disks.iter().enumerate() {
        let drive = format!(
            "if=none,id=disk{index},format=raw,snapshot=on,file={}",
            disk.display().to_string().replace(',', ",,")
        );
        command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=disk{index}")]);
    }
    command
}
