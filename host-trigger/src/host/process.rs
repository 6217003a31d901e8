//! Processes of this host ([`proc(5)`](https://man7.org/linux/man-pages/man5/proc.5.html)): their
//! names, and which of them run a VM.

use std::{ffi::OsStr, fs, io, os::unix::ffi::OsStrExt, path::Path};

use super::{
    kernel_text::{self, entries},
    search::{BATCH, Search, TimeUp},
};

/// Returns the process IDs of all processes.
pub(crate) fn all() -> io::Result<Vec<i32>> {
    let names = entries(Path::new("/proc"))?.into_iter();
    let ids = names.filter_map(|path| kernel_text::number(path.file_name()?.as_bytes()));
    Ok(ids.collect())
}

/// Returns the name of the process `pid`. It may have any bytes; those that are not UTF-8 are
/// replaced.
pub(crate) fn name(pid: i32) -> String {
    String::from_utf8_lossy(command(pid).trim_ascii_end()).into_owned()
}

/// Returns the name of the process `pid`, and the name of its VM if it is a QEMU.
pub(crate) fn describe(pid: i32) -> String {
    // The arguments are in the process's memory, and their reader may have to wait for it.
    let vm = is_named_qemu(pid).then(|| vm_name(&arguments(pid))).flatten();
    let vm = vm.map(|name| format!(", {name}")).unwrap_or_default();
    format!("{}{vm}", name(pid))
}

fn command(pid: i32) -> Vec<u8> {
    kernel_text::bytes(format!("/proc/{pid}/comm")).unwrap_or_default()
}

fn arguments(pid: i32) -> Vec<u8> {
    kernel_text::bytes(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Whether the process runs a VM: its program is named like QEMU, or it has a descriptor of a KVM
/// VM.
///
/// # Errors
/// It has too many descriptors for the time of the search.
pub(crate) fn runs_a_vm(pid: i32, search: &Search) -> Result<bool, TimeUp> {
    if is_qemu(pid) {
        return Ok(true);
    }
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Ok(false) };
    for (index, descriptor) in descriptors.filter_map(Result::ok).enumerate() {
        if index % BATCH == BATCH - 1 {
            search.check()?;
        }
        let link = fs::read_link(descriptor.path());
        if link.is_ok_and(|link| link == Path::new("anon_inode:kvm-vm")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the process or its program is named like QEMU (`qemu-…`).
pub(crate) fn is_qemu(pid: i32) -> bool {
    is_named_qemu(pid) || is_qemu_command_line(&arguments(pid))
}

/// Whether the process or its program is named like QEMU, as far as that is known without its
/// arguments.
pub(crate) fn is_named_qemu(pid: i32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    is_qemu_name(&command(pid))
        || program
            .is_ok_and(|path| path.file_name().is_some_and(|name| is_qemu_name(name.as_bytes())))
}

fn is_qemu_name(name: &[u8]) -> bool {
    name.starts_with(b"qemu-")
}

fn is_qemu_command_line(arguments: &[u8]) -> bool {
    let program = arguments.split(|&byte| byte == 0).next().unwrap_or_default();
    let name = Path::new(OsStr::from_bytes(program)).file_name();
    name.is_some_and(|name| is_qemu_name(name.as_bytes()))
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
