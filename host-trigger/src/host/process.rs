//! Processes of this host ([`proc(5)`](https://man7.org/linux/man-pages/man5/proc.5.html)): their
//! names, and which of them run a VM.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::sysfs::names;

/// Returns the name of the process `pid`, and the name of its VM if it is a QEMU.
pub(crate) fn describe(pid: i32) -> String {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let vm = vm_name(&arguments(pid)).map(|name| format!(", {name}")).unwrap_or_default();
    format!("{}{vm}", command.trim_end())
}

fn arguments(pid: i32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Whether the process runs a VM: its program is named like QEMU, or it has a descriptor of a KVM
/// VM.
pub(crate) fn runs_a_vm(pid: i32) -> bool {
    let descriptors = PathBuf::from(format!("/proc/{pid}/fd"));
    let is_vm = |name| {
        fs::read_link(descriptors.join(name))
            .is_ok_and(|link| link == Path::new("anon_inode:kvm-vm"))
    };
    is_qemu(pid) || names(&descriptors).any(is_vm)
}

/// Whether the process's program is named like QEMU (`qemu-…`).
pub(crate) fn is_qemu(pid: i32) -> bool {
    is_qemu_command_line(&arguments(pid))
}

fn is_qemu_command_line(arguments: &[u8]) -> bool {
    let program =
        String::from_utf8_lossy(arguments.split(|&byte| byte == 0).next().unwrap_or_default());
    PathBuf::from(program.into_owned())
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("qemu-"))
}

/// Returns the name of QEMU's VM: `sandbox-<id>` with Kata (`-name sandbox-x,debug-threads=on`),
/// and `x` of `guest=x` with libvirt.
fn vm_name(arguments: &[u8]) -> Option<String> {
    let mut after = is_qemu_command_line(arguments)
        .then(|| arguments.split(|&byte| byte == 0).skip_while(|argument| *argument != b"-name"))?;
    let name = String::from_utf8_lossy(after.nth(1)?).into_owned();
    let name = name.split(',').next()?;
    Some(name.strip_prefix("guest=").unwrap_or(name).to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_qemus_vm_is_returned() {
        let kata = b"/usr/bin/qemu-system-x86_64\0-name\0sandbox-x1,debug-threads=on\0-uuid\0";
        assert_eq!(vm_name(kata).as_deref(), Some("sandbox-x1"));
        let libvirt = b"/usr/libexec/qemu-kvm\0-name\0guest=db,debug-threads=on\0";
        assert_eq!(vm_name(libvirt).as_deref(), Some("db"));
        assert_eq!(vm_name(b"sleep\0-name\0x\0"), None);
        assert_eq!(vm_name(b"qemu-system-x86_64\0-name"), None);
    }
}
