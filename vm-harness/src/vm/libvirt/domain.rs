//! The domain of libvirt ([format](https://libvirt.org/formatdomain.html)) that is a machine of the
//! harness. What libvirt does not know is passed on to QEMU.

use std::path::Path;

use crate::{
    Accelerator, Error,
    vm::{
        BootOptions,
        boot_snapshot::in_path,
        machine::{MachineFiles, VSOCK},
    },
};

impl BootOptions<'_> {
    /// Returns the domain's description.
    pub(super) fn domain(self, name: &str, files: &MachineFiles) -> Result<String, Error> {
        let qemu = in_path(&self.environment.qemu);
        let qemu = std::fs::canonicalize(&qemu).map_err(Error::file("find", &*qemu))?;
        let (kind, cpu) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "<cpu mode='host-passthrough'/>".to_owned()),
            Accelerator::Tcg => {
                let model = self.accelerator.cpu();
                let cpu = "<cpu mode='custom' match='exact' check='none'>";
                ("qemu", format!("{cpu}<model>{model}</model></cpu>"))
            }
        };
        let socket = |path: &Path| format!("unix:{},server=on,wait=off", path.display());
        // As JSON: QEMU then adds it after those of libvirt, which have fixed PCI addresses.
        let vsock = serde_json::json!({
            "driver": "vhost-user-vsock-pci", "id": VSOCK, "chardev": VSOCK,
        });
        let arguments = [
            "-qmp".to_owned(),
            socket(&files.monitor),
            "-qmp".to_owned(),
            socket(&files.qmp),
            "-chardev".to_owned(),
            format!("socket,id={VSOCK},path={}", files.vhost.display()),
            "-device".to_owned(),
            vsock.to_string(),
        ];
        let arguments =
            arguments.map(|text| format!("    <qemu:arg value='{}'/>\n", escaped(&text)));
        let path = |path: &Path| escaped(&path.display().to_string());
        Ok(format!(
            "<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>{cpus}</vcpu>
  {cpu}
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='scsi' index='0' model='virtio-scsi'/>
    <controller type='usb' model='none'/>
    <serial type='file'><source path='{console}'/></serial>
    <memballoon model='none'/>
  </devices>
  <qemu:commandline>
{arguments}  </qemu:commandline>
</domain>
",
            memory = self.machine.memory,
            cpus = self.machine.cpus,
            machine = self.machine.machine_type.name(),
            kernel = path(&files.kernel),
            initrd = path(&files.initramfs),
            command_line = escaped(&self.machine.kernel_command_line()),
            emulator = path(&qemu),
            console = path(&files.console),
            arguments = arguments.concat(),
        ))
    }
}

/// Returns text for an element or an attribute of XML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_markup_is_escaped() {
        assert_eq!(escaped("a<b>&'c'"), "a&lt;b>&amp;&apos;c&apos;");
    }
}
