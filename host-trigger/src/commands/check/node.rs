//! This node, independent of any sandbox: the caller's rights, the state directories of sandboxes,
//! Kata's configuration, the kernel, LVM.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;

use super::{kata, lvm};
use crate::{Error, host::kernel_text::entries, kata::sandbox, output::findings::Finding};

/// Checks the node. Kata's configuration is about new sandboxes: with `new_sandboxes` it is
/// checked, too.
pub(super) fn check(
    run_dir: Option<&Path>,
    vmm_user: Option<u32>,
    new_sandboxes: bool,
) -> Vec<Finding> {
    let root = Path::new("/");
    let mut checks = vec![rights()];
    checks.push(sandboxes(&sandbox::roots(run_dir, vmm_user)));
    checks.extend(new_sandboxes.then(|| kata::check(root)));
    checks.push(kernel());
    checks.push(vsock());
    checks.push(lvm::check(root));
    checks.extend(security_module());
    checks
}

/// The program opens block devices, the sockets of sandboxes, and other processes' descriptors, and
/// so must run as root.
fn rights() -> Finding {
    if geteuid().is_root() {
        return Finding::ok("rights", "running as root");
    }
    let source = std::io::ErrorKind::PermissionDenied.into();
    let error =
        Error::Denied { call: "running as user", path: geteuid().to_string().into(), source };
    Finding::problem("rights", &error)
}

fn sandboxes(roots: &[PathBuf]) -> Finding {
    let searched =
        roots.iter().map(|root| root.display().to_string()).collect::<Vec<_>>().join(" and ");
    match sandbox::all(roots) {
        Ok(found) if found.is_empty() => {
            let remedy =
                ["start a pod with Kata's runtime, or name another directory with --run-dir"];
            Finding::warning("sandboxes", format!("none in {searched}"), &remedy)
        }
        Ok(found) => Finding::ok("sandboxes", format!("{} in {searched}", found.len())),
        Err(e) => Finding::problem("sandboxes", &e),
    }
}

/// Disk sequence numbers distinguish a disk from a later one with the same device number.
fn kernel() -> Finding {
    let release = fs::read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = String::from_utf8_lossy(release.trim_ascii()).into_owned();
    let disks = entries(Path::new("/sys/block")).unwrap_or_default();
    let is_numbered = disks.iter().any(|disk| disk.join("diskseq").exists());
    if is_numbered || disks.is_empty() {
        return Finding::ok("kernel", release);
    }
    let message = format!(
        "{release}: it has no disk sequence numbers, so a disk cannot be distinguished from one that replaces it"
    );
    Finding::warning("kernel", message, &["use Linux 5.15 or later"])
}

/// Agents are reached by vsock, unless the hypervisor offers a Unix socket in its place.
fn vsock() -> Finding {
    match Path::new("/dev/vsock").exists() {
        true => Finding::ok("vsock", "present"),
        false => Finding::warning(
            "vsock",
            "the kernel has no vsock, which agents are reached by (vsock://CID:PORT)",
            &["modprobe vhost_vsock"],
        ),
    }
}

/// SELinux checks again when a descriptor is passed to another process.
fn security_module() -> Option<Finding> {
    let enforces = fs::read("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim_ascii() == b"1");
    enforces.then(|| {
        Finding::warning(
            "selinux",
            "SELinux is enforcing: its policy decides whether QEMU may use a block device that is passed to it",
            &["allow QEMU's type blk_file { read write getattr ioctl lock } on the volumes' type"],
        )
    })
}
